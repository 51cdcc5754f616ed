"""The configuration of a cell (scenario x strategy x seed): everything that decides its numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from firefly_cl.errors import ConfigurationError
from firefly_cl.registry import suggestion
from firefly_cl.settings import TRUTH, WANTED

if TYPE_CHECKING:
    from firefly_cl.continual.recipe import Recipe


@dataclass(frozen=True)
class Cell:
    """One scenario, strategy and seed, with every setting that its result depends on.

    `tasks`: only the first so many are streamed; `split_into`: tasks the classes are cut into;
    `image_size`: pixels of a side, where the scenario resizes;
    `budget`: floats a learner may hold; `recipe`: every field of `Recipe` as plain values.
    `evaluate_on`: "test", or "validation" while settings are chosen: test images are not read.
    `class_incremental`: whether tasks are also asked for without being told.
    """

    scenario: str
    strategy: str
    seed: int
    backbone: str
    width: float = 1.0
    constant_width: int | None = None
    budget: int | None = None
    tasks: int | None = None
    split_into: int | None = None
    validation: float = 0.1
    device: str = "cpu"
    recipe: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    evaluate_on: str = "test"
    class_incremental: bool = False
    image_size: int | None = None

    def folder(self, out: Path) -> Path:
        """Where its run is kept: OUT/<scenario>/<strategy>-seed<k>."""
        return out / self.scenario / f"{self.strategy}-seed{self.seed}"

    def digest(self) -> str:
        """The name of this very configuration: see `digest`."""
        return digest(self.as_json())

    def as_json(self) -> dict[str, Any]:
        """As plain JSON values, exactly as a record gives them back; the rule, evaluation on test
        data, task by task, of images as large as they are, goes without saying."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self), default=str))
        if self.evaluate_on == "test":
            del plain["evaluate_on"]
        if not self.class_incremental:
            del plain["class_incremental"]
        if self.image_size is None:
            del plain["image_size"]
        return plain


def digest(configuration: Mapping[str, Any]) -> str:
    """The first 12 hex digits of the SHA-256 of a configuration, a cell's or a record's.

    Taken of JSON with sorted keys, no spaces, and whole floats as integers: configurations without
    `differences` have one digest.
    """
    text = json.dumps(
        _canonical(with_defaults(configuration)), sort_keys=True, separators=(",", ":")
    )
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def with_defaults(configuration: Mapping[str, Any]) -> Mapping[str, Any]:
    """`configuration`, a cell's or a record's, with the defaults of what its recipe does not tell.

    A record is older than a field that it lacks, and the default of a new field is what was done
    before. That a default has changed its meaning since is not seen. The identity of a search holds
    a configuration, to which the same is done.
    """
    found = dict(configuration)
    if isinstance(found.get("configuration"), Mapping):
        found["configuration"] = with_defaults(found["configuration"])
    if isinstance(found.get("recipe"), Mapping):
        from firefly_cl.continual.recipe import defaults

        found["recipe"] = merged(defaults(), found["recipe"])
    return found


def _canonical(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _canonical(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_canonical(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings (dotted names) on which two configurations differ, with both values.

    What a recipe does not tell has its default: see `with_defaults`.
    """
    one, two = flat(with_defaults(first)), flat(with_defaults(second))
    names = [*one, *(name for name in two if name not in one)]
    return {
        name: (one.get(name), two.get(name)) for name in names if one.get(name) != two.get(name)
    }


def flat(configuration: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted names."""
    found: dict[str, Any] = {}
    for name, value in configuration.items():
        if isinstance(value, Mapping):
            found.update(flat(value, f"{prefix}{name}."))
        else:
            found[f"{prefix}{name}"] = value
    return found


def recipe_from(settings: Mapping[str, Any]) -> Recipe:
    """The recipe with `settings` over its defaults; ConfigurationError names an unknown field."""
    from firefly_cl.continual.recipe import Recipe

    recipe: Recipe = _override(Recipe(), settings, "recipe")
    return recipe


def _override(default: Any, settings: Mapping[str, Any], where: str) -> Any:
    known = {item.name for item in fields(default)}
    changes = {}
    for name, value in settings.items():
        if name not in known:
            raise ConfigurationError(
                f"the {where} has no setting {name!r}: {suggestion(name, known)}"
            )
        old = getattr(default, name)
        logical = old is None or isinstance(old, bool)
        if logical and isinstance(value, str):
            value = TRUTH.get(value.lower(), value)  # as options are read
        if is_dataclass(old) and isinstance(value, Mapping):
            changes[name] = _override(old, value, name)
        elif _fits(old, value):
            changes[name] = value
        else:
            wanted = WANTED.get(bool if logical else type(old), "text")
            if is_dataclass(old):
                wanted = f"a table of {name} settings"
            raise ConfigurationError(f"{name} of the {where} is {value!r}: give {wanted}")
    try:
        return replace(default, **changes)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"the {where} cannot be {dict(settings)}: {error}") from error


def _fits(default: Any, value: Any) -> bool:
    if default is None or isinstance(default, bool):
        return isinstance(value, (bool, type(default)))
    if isinstance(default, float):
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return type(value) is type(default)


def parse_settings(pairs: Sequence[str], option: str) -> dict[str, Any]:
    """Nested settings from `name=value` or `name.field=value`; values are read as JSON or text."""
    settings: dict[str, Any] = {}
    for name, value in parse_pairs(pairs, option).items():
        try:
            read = json.loads(value)
        except ValueError:
            read = value
        *path, last = name.split(".")
        inside = settings
        for part in path:
            inside = inside.setdefault(part, {})
            if not isinstance(inside, dict):
                raise ConfigurationError(f"{option} sets both {part!r} and a field of it")
        inside[last] = read
    return settings


def parse_pairs(pairs: Sequence[str], option: str) -> dict[str, str]:
    """A mapping from `name=value` strings."""
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise ConfigurationError(
                f"{option} {pair!r} is not name=value: write {option} name=value"
            )
        found[name] = value
    return found


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the settings of `over` put in, nested mappings merged."""
    result = dict(base)
    for name, value in over.items():
        old = result.get(name)
        nested = isinstance(old, Mapping) and isinstance(value, Mapping)
        result[name] = merged(old, value) if nested else value  # type: ignore[arg-type]
    return result


def recipe_as_json(recipe: Any) -> dict[str, Any]:
    """Every field of a recipe as plain values."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(recipe), default=str))
    return plain
