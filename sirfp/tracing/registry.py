"""Registries of criteria, hooks and rules: objects by name.

They extend fvcore's `Registry`, which Detectron2 uses for backbones and heads:

- the decorator accepts a name;
- the error for a name that is taken tells where its object is defined;
- the error for an unknown name lists the known names and suggests the nearest.
"""

from __future__ import annotations

from collections.abc import ItemsView, KeysView, ValuesView
from typing import Any, Generic, TypeVar

from fvcore.common import registry as fvcore

from ..errors import InputError, near

T = TypeVar("T")
_NONE: Any = object()


class Registry(fvcore.Registry, Generic[T]):
    """Objects by name. Iterating gives (name, object) pairs, as in every registry of Detectron2.

    Example:
        >>> HOOKS: Registry[type] = Registry("hook")
        >>> @HOOKS.register()             # under the name of the class
        ... class Report: ...
        >>> @HOOKS.register("other")      # under another name
        ... class Other: ...
        >>> HOOKS["Report"].__name__, "other" in HOOKS, list(HOOKS.keys())
        ('Report', True, ['Report', 'other'])

    Args:
        kind: the kind of objects, one word for messages: "criterion".
    """

    def __init__(self, kind: str):
        super().__init__(kind)
        self._obj_map: dict[str, T] = {}

    def register(self, obj: Any = None) -> Any:
        """Registers an object by `@register()`, `@register("name")` or `register(obj)`.

        Returns:
            The object, or a decorator.

        Raises:
            ValueError: the name is taken; the message tells by which object.
        """
        if obj is None or isinstance(obj, str):
            return lambda thing: self.add(obj or thing.__name__, thing)
        return self.add(obj.__name__, obj)

    def add(self, name: str, thing: T) -> T:
        """Registers an object under a name and returns the object.

        Raises:
            ValueError: the name is taken; the message tells by which object.
        """
        self._do_register(name, thing)
        return thing

    def _do_register(self, name: str, obj: Any) -> None:
        if name in self._obj_map:
            first: Any = self._obj_map[name]
            place = f"{getattr(first, '__module__', '?')}.{getattr(first, '__qualname__', first)}"
            raise ValueError(f"{self._name} {name!r} is registered already, by {place}")
        self._obj_map[name] = obj

    def get(self, name: str, default: Any = _NONE) -> T:
        """Returns the object with a name.

        Args:
            name: the name.
            default: returned for an unknown name, in place of an error.

        Raises:
            InputError: no object has this name; the message lists the known names.
        """
        return self.find(name) if default is _NONE else self._obj_map.get(name, default)

    def find(self, name: str, where: str = "") -> T:
        """Returns the object with a name that the user gave.

        Args:
            name: the name.
            where: the config key or the place in a file that holds the name, for the message.

        Raises:
            InputError: no object has this name; the message lists the known names.
        """
        if name in self._obj_map:
            return self._obj_map[name]
        listed = ", ".join(sorted(self._obj_map)) or "none"
        hint = f"{near(name, self._obj_map)}; import the file of a {self._name} of your own first (--import FILE)"
        raise InputError(f"{where and f'{where}: '}there is no {self._name} {name!r}; known are {listed}{hint}")

    def __getitem__(self, name: str) -> T:
        return self.find(name)

    def __delitem__(self, name: str) -> None:
        del self._obj_map[name]

    def __len__(self) -> int:
        return len(self._obj_map)

    def keys(self) -> KeysView[str]:
        """The names, in the order of registration."""
        return self._obj_map.keys()

    def values(self) -> ValuesView[T]:
        """The objects."""
        return self._obj_map.values()

    def items(self) -> ItemsView[str, T]:
        """(name, object) pairs."""
        return self._obj_map.items()
