"""First on a worker's PYTHONPATH, this gives its CPU device the memory of tests/transform/late_memory.py, when it is imported."""

import sys
from importlib.abc import MetaPathFinder
from importlib.util import find_spec

_WHERE = "gyges.transform.memory"


class _Late(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != _WHERE:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        execute = spec.loader.exec_module

        def execute_and_replace(module):
            execute(module)
            from transform.late_memory import LateMemory

            module.CpuMemory = LateMemory

        spec.loader.exec_module = execute_and_replace
        return spec


sys.meta_path.insert(0, _Late())
