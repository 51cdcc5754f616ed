"""Identity-residual layers z + h(z): where one would be useful, and the nodes it is made of."""

from __future__ import annotations

from dataclasses import dataclass

from firefly_cl.errors import EditError
from firefly_cl.network.graph import MAPS, POOLINGS, Node
from firefly_cl.network.net import FireflyNet
from firefly_cl.network.space import Layout, Segment


@dataclass(frozen=True)
class Deeper:
    """The nodes of a layer z + h(z) after a node, h = leave(activation(norm(enter(z)))).

    after: the node that gives z. space: of the hidden units. nodes: in the order of the graph:
    enter, norm (if any), activation, leave, and their sum with z.
    """

    after: Node
    space: str
    nodes: tuple[Node, ...]

    @property
    def enter(self) -> Node:
        """The layer with rows for the hidden units."""
        return self.nodes[0]

    @property
    def norm(self) -> Node | None:
        """The batch norm of the hidden units."""
        return self.nodes[1] if self.nodes[1].kind == "norm" else None

    @property
    def activation(self) -> Node:
        """The activation of the hidden units."""
        return self.nodes[-3]

    @property
    def leave(self) -> Node:
        """The layer with a column for each hidden unit."""
        return self.nodes[-2]

    @property
    def total(self) -> Node:
        """The sum z + h(z), which takes the place of z."""
        return self.nodes[-1]


def deeper_layer(
    net: FireflyNet,
    after: str,
    kernel: int | None = None,
    activation: str = "relu",
    norm: bool = True,
) -> Deeper:
    """What `firefly_cl.network.edits.insert` would put after a node; raises EditError as it does.

    The hidden units see `kernel` x `kernel` on maps (3 x 3 unless given, 1 x 1 where the map is
    one pixel), and are dense on flat features.
    """
    if net.tasks[-1].frozen:
        raise EditError(f"task {net.current} is frozen: begin a task before inserting a layer")
    try:
        base = net.node(after)
    except KeyError:
        raise EditError(f"there is no node {after!r} to insert a layer after") from None
    if not base.layout or base.kind == "input":
        raise EditError(f"cannot insert a layer after {after} ({base.kind}): it holds no units")
    if any(net.spaces[s.space].fixed for s in base.layout):
        raise EditError(f"{after} holds the network's input: its channels belong to no task")
    if not any(net.spaces[s.space].width(net.current) for s in base.layout):
        raise EditError(f"task {net.current} has no units at {after} to write to: widen it first")
    if kernel is None:
        kernel = 3 if base.size > 1 else 1
    if kernel % 2 == 0 and not base.flat:
        raise EditError(f"a kernel of {kernel} would change the map's size at {after}: use 3 or 5")
    if activation not in MAPS:
        raise EditError(f"activation {activation!r} is unknown: teach it with register_map")
    kind = "linear" if base.flat else "conv"
    geometry: dict[str, object] = {"bias": not norm, "per_unit": False}
    if not base.flat:
        geometry |= {
            "kernel": [kernel, kernel],
            "stride": [1, 1],
            "padding": [kernel // 2, kernel // 2],
            "dilation": [1, 1],
        }
    n = sum(name.startswith(f"{after}_deeper") for name in net.spaces) + 1
    space = f"{after}_deeper{n}"
    hidden: Layout = (Segment(space),)
    nodes: list[Node] = []

    def append(name: str, kind: str, layout: Layout, attributes: dict[str, object]) -> None:
        reads = nodes[-1].name if nodes else after
        nodes.append(Node(name, kind, (reads,), layout, attributes, base.size, base.flat))

    append(space, kind, hidden, geometry)
    if norm:
        append(f"{space}_norm", "norm", hidden, {"eps": 1e-5, "momentum": 0.1, "affine": True})
    append(f"{space}_act", "map", hidden, {"operation": activation})
    append(f"{space}_out", kind, base.layout, {**geometry, "bias": False, "residual": True})
    append(f"{space}_add", "add", base.layout, {"residual": True})
    nodes[-1] = nodes[-1].with_inputs((after, nodes[-2].name))
    return Deeper(base, space, tuple(nodes))


def deeper_places(net: FireflyNet) -> list[str]:
    """Nodes behind which one more layer of the newest task would be useful, one for each point.

    These are the activations, norms, sums, products and joins whose result goes on as it is: behind
    them comes no norm, activation or product, and behind a norm without activation no sum or join
    either. Where the maximum of some pixels goes on, the place is behind that: among equal ones
    (zeros of a ReLU) it has no derivative. Of an inserted layer the sum alone is a place, so
    that growing deeper makes no more of them. There must be units of the task to write to, and
    no space twice.
    """
    readers: dict[str, list[Node]] = {node.name: [] for node in net.nodes}
    for node in net.nodes:
        for name in node.inputs:
            readers[name].append(node)
    passed, hidden = set(), set()
    for node in net.nodes:
        if node.attributes.get("residual"):
            first = net.node(node.inputs[0])
            if node.kind == "add":
                passed.add(first.name)
            else:
                hidden |= {s.space for s in first.layout}

    def ends(node: Node) -> bool:
        """Whether a step of the network ends here."""
        followers = {"norm", "activation", "maximum", "mul"}
        if _role(node) == "norm":
            followers |= {"add", "cat"}
        elif _role(node) not in ("activation", "maximum", "add", "mul", "cat"):
            return False
        return not any(_role(reader) in followers for reader in _behind(node, readers))

    return [
        node.name
        for node in net.nodes
        if ends(node)
        and node.name not in passed
        and any(net.spaces[s.space].width(net.current) for s in node.layout)
        and len({s.space for s in node.layout}) == len(node.layout)
        and not any(s.space in hidden or net.spaces[s.space].fixed for s in node.layout)
    ]


def _role(node: Node) -> str:
    """The kind of a node, where maps are activations, maxima, or pass on what they get."""
    if node.kind == "map":
        operation = node.attributes["operation"]
        if operation not in POOLINGS:
            return "activation"
        return "maximum" if "max" in operation else "pass"
    return "pass" if node.kind in ("flatten", "identity") else node.kind


def _behind(node: Node, readers: dict[str, list[Node]]) -> list[Node]:
    """What reads a node, directly or through pooling and reshaping."""
    found = []
    for reader in readers[node.name]:
        found += _behind(reader, readers) if _role(reader) == "pass" else [reader]
    return found
