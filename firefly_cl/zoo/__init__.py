"""Backbones by name: plain, torch.fx-traceable modules that end in one Linear.

Every builder has the same signature:

    BACKBONES.get("resnet9")(n_classes=10, in_channels=3, image_size=32,
                             width=1.0, constant_width=None, generator=None)

`width` multiplies every channel count of the published network; `constant_width` gives every
layer that many channels instead (a thin seed for growth). Poolings and strides that would leave
a map of less than 2x2 pixels are dropped, so that each works from 8x8 digits to 64x64 images.
"""

from firefly_cl.registry import Registry

BACKBONES = Registry("backbone", "firefly_cl.zoo")
