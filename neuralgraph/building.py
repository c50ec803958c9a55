"""Turn config nodes into objects, and refuse at once what could only fail after an hour."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

from neuralgraph.core.errors import ConfigError, nearest

RUNTIME_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "simulator": (),
    "dataset": ("recording", "given"),
    "model": ("spec", "generator"),
    "loss": (),
    "loop": ("session",),
    "optimizer": ("params",),
    "evaluation": (),
    "report": (),
    "identifiability": (),
    "budget": (),
    "logger": (),
    "explore": (),
    "generator": ("task", "random"),
}
"""Arguments the pipeline supplies itself, by config group; a group with any is ``_partial_``."""


BOUNDS = {
    "NotNegative": "a number, 0 or above",
    "Positive": "a positive number",
    "Natural": "a whole number, 0 or above",
    "Count": "a whole number, 1 or above",
    "Part": "a share in [0, 1)",
    "Share": "a share in (0, 1]",
}
"""Names of :mod:`neuralgraph.core.bounds` in words."""


def build(node: Mapping[str, Any], group: str) -> Any:
    """The object (or the partial, where the pipeline supplies arguments) a config node names.

    Raises:
        ConfigError: no ``_target_``, an unknown one, unknown, missing or ill-typed keys.
    """
    from hydra.utils import instantiate

    if group == "simulator":  # simulator.seed is the pipeline's, not an argument
        node = {key: value for key, value in node.items() if key != "seed"}
    target = check(node, group)
    plain = {**node, "_partial_": bool(RUNTIME_ARGUMENTS[group])}
    try:
        return instantiate(plain, _convert_="all")
    except Exception as error:
        cause = error.__cause__
        if cause is not None and not isinstance(cause, TypeError):
            raise cause from None
        raise ConfigError(f"{group} ({target}): {cause or error}") from error


def check(node: Mapping[str, Any], group: str) -> str:
    """Bind a node's keys, and those of nodes inside it, to their targets; returns the target."""
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise ConfigError(f"config group '{group}' needs a _target_ (a dotted import path)")
    return _check_node(node, group, RUNTIME_ARGUMENTS[group])


def _check_node(node: Mapping[str, Any], group: str, supplied: tuple[str, ...]) -> str:
    target = node["_target_"]
    function = locate(target, group)
    is_strict = group != "optimizer"  # torch's optimisers declare what they need themselves
    keys = {k: v for k, v in node.items() if not str(k).startswith("_")}
    signature = inspect.signature(function)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    for key in keys:
        if key not in signature.parameters and not takes_any:
            known = [n for n in signature.parameters if n not in (*supplied, "self")]
            raise ConfigError(f"{group}.{key} is unknown to {target}: {nearest(str(key), known)}")
    for name in supplied:
        if name not in signature.parameters and is_strict:
            raise ConfigError(
                f"{target} cannot serve as '{group}': it must take the argument '{name}' "
                f"(it takes {', '.join(signature.parameters) or 'nothing'})"
            )
    missing = [
        name
        for name, parameter in signature.parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        and name not in keys
        and name not in supplied
    ]
    if missing and is_strict:
        raise ConfigError(
            f"{group} ({target}) lacks {', '.join(missing)}: set {group}.{missing[0]}=…"
        )
    for key, value in keys.items():
        if isinstance(value, Mapping) and "_target_" in value:
            _check_node(value, f"{group}.{key}", ())
        elif key in signature.parameters:
            _check_type(f"{group}.{key}", value, signature.parameters[key], function)
    return target


def bind_switches(function: Callable[..., Any], switches: Mapping[str, bool]) -> None:
    """Check the keys of ``prior`` against the keyword arguments of ``simulator.reveal``."""
    parameters = inspect.signature(function).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    known = [n for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY]
    for key in switches:
        if key not in known:
            raise ConfigError(f"prior.{key} is unknown here: {nearest(key, known)}")
    for key in known:
        if key not in switches:
            raise ConfigError(
                f"prior.{key} is not set: say what the learner is told (true or false); "
                f"this simulator can reveal {', '.join(known)}"
            )


def locate(target: str, group: str) -> Callable[..., Any]:
    """What a ``_target_`` names.

    Raises:
        ConfigError: it cannot be imported; names the nearest that can.
    """
    from hydra.utils import get_object

    try:
        return get_object(target)
    except Exception as error:
        module = str(target).rpartition(".")[0]
        known = vars(sys.modules[module]) if module in sys.modules else {}
        names = [n for n, v in known.items() if callable(v)]
        hint = nearest(str(target).rpartition(".")[2], names) if names else "is it importable?"
        raise ConfigError(f"{group}._target_={target} cannot be imported: {hint}") from error


def _check_type(
    name: str, value: Any, parameter: inspect.Parameter, function: Callable[..., Any]
) -> None:
    """Validate a plain value against an annotation.

    Annotations that only exist for type checkers, or are not about plain values, are left alone.
    """
    from pydantic import ConfigDict, TypeAdapter, ValidationError
    from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError

    annotation = parameter.annotation
    if annotation is parameter.empty:
        return
    if isinstance(annotation, str):
        owner = function.__init__ if inspect.isclass(function) else function
        scope = getattr(inspect.unwrap(owner), "__globals__", {})
        if inspect.isclass(function):  # a dataclass's __init__ lives in a namespace of its own
            scope = {**vars(sys.modules[function.__module__]), **scope}
        try:
            annotation = eval(annotation, scope)
        except Exception:
            return
    try:
        adapter = TypeAdapter(annotation, config=ConfigDict(strict=False))
    except (PydanticSchemaGenerationError, PydanticUserError):
        return
    try:
        adapter.validate_python(value)
    except ValidationError as error:
        wanted = str(parameter.annotation)
        for bound, words in BOUNDS.items():
            wanted = wanted.replace(bound, words)
        raise ConfigError(
            f"{name} must be {wanted}, got {value!r}: {error.errors()[0]['msg'].lower()}"
        ) from None
    if isinstance(value, bool) and "bool" not in str(parameter.annotation):
        raise ConfigError(f"{name} must be {parameter.annotation}, got {value!r}")
