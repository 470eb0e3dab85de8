"""Finds the calls that an adapter makes to its engine, and their signatures in its source.

``python -m tests.backends.engine_calls ENGINE SOURCE`` records the signatures again, from a
checkout or an unpacked archive of the version that the recipe names, which must hold the package.
"""

import ast
import inspect
import json
import sys
import tomllib
from pathlib import Path

import torch

from backends import registry

HERE = Path(__file__).parent
BACKENDS = HERE.parents[1] / "backends"
RECORD = HERE / "engine_signatures.json"

OBJECTS = {
    "spconv-triton": {
        "self.layers": "spconv_triton.pytorch",
        "layers": "spconv_triton.pytorch",
        "self.functions": "spconv_triton.pytorch.functional",
        "x": "spconv_triton.pytorch.SparseConvTensor",
        "self.native": "spconv_triton.pytorch.SparseConv3d",
    },
    "warpconvnet": {
        "x.voxels": "warpconvnet.geometry.types.voxels.Voxels",
        "self.native": "warpconvnet.nn.modules.sparse_conv.SpatiallySparseConv",
    },
    "fvdb": {
        "grid": "fvdb.GridBatch",
        "made": "fvdb.ConvolutionPlan",
        "x.values": "fvdb.JaggedTensor",
        "grid.ijk_to_index(voxels, cumulative=True)": "fvdb.JaggedTensor",
        "self.native": "fvdb.nn.SparseConv3d",
    },
    "torch-lattice": {"x": "torch_lattice.SparseTensor"},
    "flex-gemm": {"function": "flex_gemm.ops.spconv.SparseConv3dFunction"},
    "spira": {
        "x.voxels": "spira.SparseTensor",
        "self.voxels": "spira.SparseTensor",
        "voxels": "spira.SparseTensor",
        "native": "spira.nn.SparseConv",
        "self.native": "spira.nn.SparseConv",
        "self.layer_class": "spira.nn.SparseConv",
    },
}
"""Expressions of an adapter that are objects of its engine; those never run on a GPU have them."""

SHARED = {"spconv-triton": ["spconv_interface.py"], "spira": ["torchsparse_interface.py"]}
"""Modules that adapt several engines."""

PLAIN = {"get", "append", "deferred", "within", "plan", "strided"}
"""Methods of the adapters' own objects, beside those of tensors."""


def package(engine):
    """Return the top-level package of an engine."""
    return recipe(engine)["imports"]


def recipe(engine):
    return tomllib.loads((BACKENDS / "recipes" / f"{engine}.toml").read_text())


def version(engine):
    """Return what the recipe installs: a commit or a version."""
    found = recipe(engine)
    return found.get("source", {}).get("commit", found["version"])


class Adapter(ast.NodeVisitor):
    """The uses of an engine in a module: names, and calls with their arguments.

    Attributes
    ----------
    calls : list of (int, str, ast.Call)
        Line, dotted name in the engine, and the call.
    names : set of str
        Dotted names that are read or set.
    unknown : list of str
        Calls of which it is not known whether they are the engine's.
    """

    def __init__(self, engine, path):
        self.engine, self.objects = package(engine), OBJECTS[engine]
        self.imports, self.others, self.local = {}, set(), {}
        self.calls, self.names, self.unknown = [], set(), []
        self.file = path.name
        self.visit(ast.parse(path.read_text()))

    def visit_Import(self, node):
        for alias in node.names:
            name = alias.name.partition(".")[0]
            self._bind(name, alias.asname or name, alias.name if alias.asname else name)

    def visit_ImportFrom(self, node):
        for alias in node.names:
            name = alias.asname or alias.name
            self._bind(node.module.partition(".")[0], name, f"{node.module}.{alias.name}")

    def _bind(self, top, name, target):
        if top == self.engine:
            self.imports[name] = target
        else:
            self.others.add(name)

    def visit_FunctionDef(self, node):
        self.local = {}
        self.generic_visit(node)

    def visit_Assign(self, node):
        targets, values = node.targets, [node.value]
        if isinstance(targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple):
            targets, values = targets[0].elts, node.value.elts
        for target, value in zip(targets, values, strict=False):
            if isinstance(target, ast.Name):
                self.local.setdefault(target.id, set()).update(self.resolve(value))
        self.generic_visit(node)

    def resolve(self, node):
        """Return the dotted names in the engine that an expression can be."""
        if isinstance(node, ast.Name) and self.local.get(node.id):
            return self.local[node.id]
        if (text := ast.unparse(node)) in self.objects:
            return {self.objects[text]}
        if isinstance(node, ast.Call):  # an object of a class
            return {name for name in self.resolve(node.func) if _is_class(name)}
        if isinstance(node, ast.IfExp):
            return self.resolve(node.body) | self.resolve(node.orelse)
        if isinstance(node, ast.Name):
            return {self.imports[node.id]} if node.id in self.imports else set()
        if isinstance(node, ast.Attribute):
            return {f"{owner}.{node.attr}" for owner in self.resolve(node.value)}
        return set()

    def visit_Attribute(self, node):
        self.names |= {name for name in self.resolve(node) if "." in name}
        self.generic_visit(node)

    def visit_Call(self, node):
        found = self.resolve(node.func)
        if ast.unparse(node.func) in self.objects:  # a layer
            found = {f"{name}.forward" for name in found}
        self.calls += [(f"{self.file}:{node.lineno}", name, node) for name in sorted(found)]
        self.names |= {name for name in found if "." in name}
        if not found and not self._is_other(node.func):
            self.unknown.append(f"{self.file}:{node.lineno}: {ast.unparse(node)}")
        self.generic_visit(node)

    def _is_other(self, function):
        if not isinstance(function, ast.Attribute):
            return True
        root = function
        while isinstance(root, ast.Attribute):
            root = root.value
        names = {"self", "registry", "super", *self.others}
        outer = root.func if isinstance(root, ast.Call) else root
        plain = function.attr in PLAIN or hasattr(torch.Tensor, function.attr)
        own = isinstance(outer, ast.Name) and outer.id in names
        return plain or own or isinstance(root, ast.Constant)


def _is_class(name):
    return name.rpartition(".")[2][0].isupper()


def adapters(engine):
    """Return the uses of an engine in each module of its adapter."""
    own = registry.BUILT_IN[engine].rpartition(".")[2] + ".py"
    return [Adapter(engine, BACKENDS / name) for name in (own, *SHARED.get(engine, []))]


def signature(parameters):
    """Make a signature of recorded parameters."""
    namespace = {}
    exec(f"def recorded({', '.join(parameters)}): pass", namespace)
    return inspect.signature(namespace["recorded"])


def bind(parameters, call):
    """Bind the arguments of a call; raise TypeError if they do not fit."""
    given = [each for each in call.args if not isinstance(each, ast.Starred)]
    named = {each.arg: None for each in call.keywords if each.arg}
    made = signature(parameters)
    if len(given) < len(call.args) or len(named) < len(call.keywords):
        return made.bind_partial(*given, **named)
    return made.bind(*given, **named)


class Source:
    """The Python source of an engine, in which dotted names are looked up."""

    def __init__(self, folder):
        self.folder, self.trees = Path(folder), {}

    def look_up(self, dotted):
        """Return the parameters of a function or class, ``None`` for a value; raise LookupError."""
        parts = dotted.split(".")
        for length in range(len(parts), 0, -1):
            module = self._module(".".join(parts[:length]))
            # A name that a package defines hides the module of the same name.
            above = self._module(".".join(parts[: length - 1])) if length > 1 else None
            if module and above and self._defines(above, parts[length - 1], bool(parts[length:])):
                continue
            if module:
                return self._member(module, ".".join(parts[:length]), parts[length:])
        raise LookupError(f"no module of {dotted}")

    def _defines(self, tree, name, has_members):
        return not has_members and any(
            isinstance(node, ast.ImportFrom)
            and any((alias.asname or alias.name) == name for alias in node.names)
            and node.module
            for node in tree.body
        )

    def _path(self, module):
        path = self.folder / module.replace(".", "/")
        places = (path / "__init__.py", path.with_suffix(".py"))
        return next((place for place in places if place.is_file()), None)

    def _module(self, module):
        path = self._path(module)
        if path and module not in self.trees:
            self.trees[module] = ast.parse(path.read_text())
        return self.trees.get(module) if path else None

    def _member(self, tree, module, parts):
        if not parts:
            return None
        found = self._find(tree.body, module, parts[0])
        if found is None:
            raise LookupError(f"{module} has no {parts[0]}")
        node, home = found
        if node == f"{module}.{parts[0]}":
            return None  # a compiled module
        if isinstance(node, str):
            return self.look_up(".".join([node, *parts[1:]]))
        if isinstance(node, ast.ClassDef):
            return self._class(node, home, parts[1:])
        if isinstance(node, ast.FunctionDef):
            return self._parameters(node, bound=False)
        if isinstance(node, ast.Assign) and ast.unparse(node.value).endswith(".apply"):
            function = ast.unparse(node.value).removesuffix(".apply")
            return self.look_up(f"{home}.{function}.forward")[1:]  # without the context
        return None

    def _find(self, body, module, name):
        for node in reversed(body):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name:
                return node, module
            if isinstance(node, ast.FunctionDef) and any(
                isinstance(each, ast.Global) and name in each.names for each in node.body
            ):
                return node.body[0], module
            if isinstance(node, (ast.If, ast.Try)):
                inner = [*node.body, *node.orelse, *getattr(node, "finalbody", [])]
                if found := self._find(inner, module, name):
                    return found
            if isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                if any(isinstance(each, ast.Name) and each.id == name for each in targets):
                    return node, module
            if isinstance(node, ast.ImportFrom):
                origin = self._origin(node, module)
                for alias in node.names:
                    if (alias.asname or alias.name) == name:
                        return f"{origin}.{alias.name}", module
                    tree = self._module(origin) if alias.name == "*" else None
                    if (
                        tree
                        and name in _exported(tree, name)
                        and (found := self._find(tree.body, origin, name))
                    ):
                        return found
        return None

    def _origin(self, node, module):
        if not node.level:
            return node.module
        parts = module.split(".")
        is_package = self._path(module).name == "__init__.py"
        kept = parts[: len(parts) - node.level + is_package]
        return ".".join([*kept, *filter(None, [node.module])])

    def _class(self, node, module, parts):
        name = parts[0] if parts else "__init__"
        owner = self._owner(node, module, name)
        if owner is None:
            fields = [each for each in node.body if isinstance(each, ast.AnnAssign)]
            if any("dataclass" in ast.unparse(each) for each in node.decorator_list) and not parts:
                return [_with_default(each.target.id, each.value) for each in fields]
            if not parts:
                return ["*_", "**__"]  # those of a class of another package
            raise LookupError(f"{module}.{node.name} has no {name}")
        if isinstance(owner, ast.FunctionDef):
            decorators = {ast.unparse(each) for each in owner.decorator_list}
            if decorators & {"property", "functools.cached_property", "cached_property"}:
                return None
            return self._parameters(owner, bound="staticmethod" not in decorators)
        return None

    def _owner(self, node, module, name):
        """Return the member of a class or its bases; attributes of instances count too."""
        for each in node.body:
            if isinstance(each, ast.FunctionDef) and each.name == name:
                return each
        for each in ast.walk(node):
            if isinstance(each, (ast.Assign, ast.AnnAssign)):
                targets = each.targets if isinstance(each, ast.Assign) else [each.target]
                if any(ast.unparse(target) in (f"self.{name}", name) for target in targets):
                    return each
        for base in node.bases:
            tree = self._module(module)
            found = self._find(tree.body, module, ast.unparse(base))
            while found and isinstance(found[0], str):
                origin, _, last = found[0].rpartition(".")
                tree = self._module(origin)
                found = self._find(tree.body, origin, last) if tree else None
            if found and isinstance(found[0], ast.ClassDef):
                owner = self._owner(found[0], found[1], name)
                if owner is not None:
                    return owner
        return None

    def _parameters(self, node, bound):
        made = node.args
        positional = [*made.posonlyargs, *made.args]
        first = len(positional) - len(made.defaults)
        listed = [
            _with_default(each.arg, made.defaults[index - first] if index >= first else None)
            for index, each in enumerate(positional)
        ]
        listed = listed[1:] if bound else listed
        if made.vararg:
            listed.append(f"*{made.vararg.arg}")
        elif made.kwonlyargs:
            listed.append("*")
        listed += [
            _with_default(each.arg, default)
            for each, default in zip(made.kwonlyargs, made.kw_defaults, strict=True)
        ]
        return [*listed, f"**{made.kwarg.arg}"] if made.kwarg else listed


def _exported(tree, name):
    """Return what a star takes from a module, of which ``name`` is the one in question."""
    listed = next(
        (
            node.value
            for node in tree.body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        ),
        None,
    )
    return [name] if listed is None else ast.literal_eval(listed)


def _with_default(name, default):
    """Write a parameter; of a default that is not a constant, only that there is one."""
    if default is None:
        return name
    return f"{name}={ast.unparse(default) if isinstance(default, ast.Constant) else '...'}"


def record(engine, folder):
    """Return the entry of an engine: what it is, and what each name in use is.

    A name is the parameters of a function or class, ``module``, or null for any other value.
    """
    source = Source(folder)
    found = {}
    for name in sorted(set().union(*(adapter.names for adapter in adapters(engine)))):
        owner = name.rpartition(".")[0]
        if owner in found and found[owner] is None:
            found[name] = None  # of a value, such as a tensor
            continue
        found[name] = source.look_up(name)
        if found[name] is None and source._path(name):
            found[name] = "module"
    kept = {name: entry for name, entry in found.items() if not _of_a_value(name, found)}
    return {"version": version(engine), "names": kept}


def _of_a_value(name, entries):
    owner = name.rpartition(".")[0]
    return owner in entries and entries[owner] is None


if __name__ == "__main__":
    engine, folder = sys.argv[1:]
    entries = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    entries[engine] = record(engine, folder)
    RECORD.write_text(json.dumps(entries, indent=1, sort_keys=True) + "\n")
