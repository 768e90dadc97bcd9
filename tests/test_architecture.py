"""No import cycles: the part of it that `lint-imports` does not see, since its contracts look past each `__init__`."""

from graphlib import TopologicalSorter

import grimp
import pytest


@pytest.fixture(scope="module")
def imports():
    """Each module with the modules that it imports, also inside functions and for annotations."""
    graph = grimp.build_graph("stepsal", cache_dir=None)
    return {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}


def test_no_module_imports_itself_by_way_of_others(imports):
    TopologicalSorter(imports).prepare()  # its CycleError lists the modules of the cycle


def test_no_module_of_the_package_imports_the_whole_package(imports):
    """`stepsal/__init__.py` is for users: it imports every folder."""
    assert [module for module, imported in imports.items() if "stepsal" in imported] == []
