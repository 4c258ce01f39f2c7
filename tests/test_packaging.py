"""The house keeps its floors, declares what it imports, and arrives whole in a wheel."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser


ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ACCELERATE_CONFIGS = sorted((ROOT / "recipes" / "accelerate").glob("*.yaml"))

# From the ground up: a module imports only from its own floor or below. The longest matching name counts.
FLOORS = [
    {"errors", "settings", "options", "artifacts", "arguments", "offline", "processes", "pages"}
    | {"safeguards", "tables", "histories", "splits", "limits", "terminal", "endings", "fingerprints", "cards"}
    | {"environment", "neighbors", "search_config"},
    {"dataset", "provenance", "catalog", "categories", "vocabulary", "grammar", "branches", "packing", "forms"}
    | {"references"}
    | {"scoring"}
    | {"evaluation.metrics", "interests.table"},
    {"quantizers", "embedding", "decoding", "models", "scorers", "hub", "model_card"},
    {
        "training",
        "validation",
        "adapters",
        "runs",
        "catalog_updates",
        "updating",
        "remember",
        "blend",
        "paths",
        "thoughts",
        "rewards",
        "sft",
        "grpo",
        "interests",
        "retrieval",
        "ranking",
    },
    {"requests", "evaluation", "users", "answering", "pipeline", "click_pipeline", "batch"},
    {"serving", "bench", "tune", "grids", "cli", "__init__"},
]


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_name(file): file for package in ("hf_gr", "data_prep") for file in sorted((ROOT / package).rglob("*.py"))
}


def imports_in(source: str, package: str, modules: set[str]) -> set[str]:
    """Absolute names of what the source of a module of `package` imports, at its top or inside a function.

    `from a import b` counts as `a.b` where that is one of `modules`, else as `a`.
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names = {f"{base}.{alias.name}" for alias in node.names}
            found |= (names & modules) | ({base} if names - modules else set())
    return found


def imports_of(module: str) -> set[str]:
    file = MODULES[module]
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    return imports_in(file.read_text(), package, set(MODULES))


def floor_of(module: str) -> int:
    name = module.removeprefix("hf_gr").removeprefix(".") or "__init__"
    while name:
        for floor, names in enumerate(FLOORS):
            if name in names:
                return floor
        name = name.rpartition(".")[0]
    raise AssertionError(f"{module} stands on no floor yet: add it to FLOORS in {Path(__file__).name}")


def test_imports_in_resolves_every_form():
    modules = {"hf_gr", "hf_gr.a", "hf_gr.a.b", "hf_gr.c"}
    cases = {
        "import os.path": {"os.path"},
        "from . import b": {"hf_gr.a.b"},
        "from . import b, helper": {"hf_gr.a.b", "hf_gr.a"},
        "from .b import helper": {"hf_gr.a.b"},
        "def f():\n    from ..c import x": {"hf_gr.c"},
        "from hf_gr import c": {"hf_gr.c"},
    }
    for source, expected in cases.items():
        assert imports_in(source, "hf_gr.a", modules) == expected, source


def test_floor_of_takes_the_longest_name():
    assert floor_of("hf_gr") == 5
    assert floor_of("hf_gr.evaluation") == floor_of("hf_gr.evaluation.report") == 4
    assert floor_of("hf_gr.evaluation.metrics") == 1
    with pytest.raises(AssertionError, match=r"hf_gr\.attic stands on no floor"):
        floor_of("hf_gr.attic")


def test_modules_import_only_from_their_own_floor_or_below():
    upward = [
        f"{module} (floor {floor_of(module)}) imports {imported} (floor {floor_of(imported)})"
        for module in MODULES
        if module.split(".")[0] == "hf_gr"
        for imported in sorted(imports_of(module))
        if imported.split(".")[0] == "hf_gr" and floor_of(imported) > floor_of(module)
    ]
    assert not upward, "\n".join(upward)


def cycles(imports: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules of which each reaches every other, given what each imports."""

    def reached(module: str) -> set[str]:
        found, new = set[str](), {module}
        while new:
            new = {name for known in new for name in imports.get(known, ())} - found
            found |= new
        return found

    below = {module: reached(module) for module in imports}
    groups = {frozenset(other for other in names if module in below.get(other, ())) for module, names in below.items()}
    return sorted(sorted(group) for group in groups if group)


def test_no_modules_import_each_other():
    """Under TYPE_CHECKING and inside functions neither: who knows whom goes one way."""
    assert cycles({"a": {"b"}, "b": {"c", "x"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert cycles({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert not cycles({module: imports_of(module) for module in MODULES})


def test_files_are_short_enough_to_read():
    """400 lines at most."""
    long = {module: lines for module, file in MODULES.items() if (lines := len(file.read_text().splitlines())) > 400}
    assert not long, long


@pytest.mark.parametrize(
    ("question", "rooms"),
    [
        (r"recursion_of", {"models", "forms"}),  # readers tell what codes are read from
        (r"\.form (==|!=|in)\b", {"models", "forms"}),
        (r"\b(Trie|Unordered)Grammar\b", {"grammar", "forms"}),  # a grammar says of itself what others ask
    ],
)
def test_nobody_asks_for_a_class(question, rooms):
    """Nobody outside asks which model, form or grammar it has before it, so that a new one needs no change there."""
    asked = {module for module, file in MODULES.items() if re.search(question, file.read_text())}
    assert {module.split(".")[1] for module in asked} <= rooms, asked


def test_only_the_command_line_reaches_data_prep_and_nothing_reaches_the_scripts():
    outside = {"recipes", "benchmarks", "tests", "data_prep"}
    reached = {
        (module, imported.split(".")[0])
        for module in MODULES
        for imported in imports_of(module)
        if imported.split(".")[0] in outside - {module.split(".")[0]}
    }
    assert reached <= {("hf_gr.cli", "data_prep")}


def test_every_imported_package_is_a_declared_dependency():
    extras = [requirement for group in PROJECT["optional-dependencies"].values() for requirement in group]
    requirements = [*PROJECT["dependencies"], *extras]
    declared = {normalized(re.match(r"[\w.-]+", requirement).group()) for requirement in requirements}
    distributions = packages_distributions()
    imported = {(name.split(".")[0], module) for module in MODULES for name in imports_of(module)}
    undeclared = {
        f"{module} imports {name}"
        for name, module in imported
        if name not in sys.stdlib_module_names | {"hf_gr", "data_prep"}
        and not declared & {normalized(found) for found in distributions.get(name, [name])}
    }
    assert not undeclared, "\n".join(sorted(undeclared))


def normalized(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def test_every_dependency_has_a_lower_and_an_upper_bound():
    for requirement in PROJECT["dependencies"]:
        assert re.fullmatch(r"[\w-]+>=[\d.]+,<[\d.]+", requirement), requirement


def test_every_extra_has_code_behind_it():
    """`docs` and `dev` are tools; the others are packages that a module asks for by their names."""
    code = {module: file.read_text() for module, file in MODULES.items()}
    for extra in PROJECT["optional-dependencies"].keys() - {"docs", "dev"}:
        for requirement in PROJECT["optional-dependencies"][extra]:
            name = re.match(r"[\w-]+", requirement).group().replace("-", "_")
            assert any(name in source for source in code.values()), f"nothing uses {requirement} of [{extra}]"


def test_accelerate_configs_are_all_there():
    names = {file.stem for file in ACCELERATE_CONFIGS}
    assert names == {"cpu", "one_gpu", "multi_gpu", "fsdp2", "deepspeed_zero2", "deepspeed_zero3"}


@pytest.mark.parametrize("file", ACCELERATE_CONFIGS, ids=lambda file: file.stem)
def test_accelerate_config_is_understood(file):
    config = load_config_from_file(str(file))
    # The launcher takes unknown nested keys in silence, so they are compared with its own options.
    options = vars(launch_command_parser().parse_args(["script.py"]))
    assert not (config.fsdp_config.keys() | config.deepspeed_config.keys()) - options.keys()
    command = f"accelerate launch --config_file {file.relative_to(ROOT)} recipes/sft.py --config "
    assert command in file.read_text(), "the header must give the command"


@pytest.mark.slow
def test_wheel_holds_both_packages_and_the_type_marker(tmp_path):
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        info = f"hf_gr-{PROJECT['version']}.dist-info"
        scripts = archive.read(f"{info}/entry_points.txt").decode()
    kinds = ("*.py", "*.jinja", "*.yaml")
    files = {kind: {file.relative_to(ROOT).as_posix() for file in (ROOT / "hf_gr").rglob(kind)} for kind in kinds}
    assert all(files.values())
    assert {file.relative_to(ROOT).as_posix() for file in MODULES.values()}.union(*files.values()) <= names
    assert {"hf_gr/py.typed", f"{info}/licenses/LICENSE"} <= names
    assert {name.split("/")[0] for name in names} <= {"hf_gr", "data_prep", info}
    assert {name.split("/")[0] for name in names} >= {"hf_gr", "data_prep"}
    assert "hf-gr = hf_gr.cli:main" in scripts


def text_without_encoding(source: str) -> list[int]:
    """Lines that read or write text in whatever encoding the machine has."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or any(word.arg == "encoding" for word in node.keywords):
            continue
        method = isinstance(node.func, ast.Attribute)
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in ("read_text", "write_text") and ast.unparse(node.func.value) != "installed":
            lines.append(node.lineno)
        elif name == "open" and (not method or ast.unparse(node.func.value) not in ("Image", "os", "fsspec")):
            modes = [word.value for word in node.keywords if word.arg == "mode"] + node.args[0 if method else 1 :][:1]
            if "b" not in (ast.literal_eval(modes[0]) if modes else "r"):
                lines.append(node.lineno)
    return lines


def test_text_is_utf_8_on_every_machine():
    found = text_without_encoding('a.read_text()\na.open("rb")\nopen(a)\na.open("w", encoding="utf-8")\nImage.open(a)')
    assert found == [1, 3]
    files = [
        file for folder in ("hf_gr", "data_prep", "recipes", "benchmarks") for file in (ROOT / folder).rglob("*.py")
    ]
    wrong = {file.relative_to(ROOT).as_posix(): text_without_encoding(file.read_text()) for file in files}
    assert not {file: lines for file, lines in wrong.items() if lines}


def test_the_map_for_contributors_names_every_module_and_room():
    listed = (ROOT / "CONTRIBUTING.md").read_text().partition("```")[2].partition("```")[0]
    names = set(re.findall(r"[\w.]+/?", listed))
    modules = {file.name for file in (ROOT / "hf_gr").glob("*.py")} - {"__init__.py"}
    rooms = {f"{file.parent.name}/" for file in (ROOT / "hf_gr").glob("*/*.py")}
    assert (modules | rooms) - names == set()
