import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))

# Triton decides when it is first imported, by whomever, whether kernels are compiled or interpreted.
if not pathlib.Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")
