"""Another process that reads a pool's pages: ``python -m gyges.doctor.checks.peer_process '{"descriptors": [...], ...}'``.

Prints {slot: first number of the page} of what is mapped. A second argument, "module:function", makes the driver.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from gyges.memory.cuda import CudaPeerMemory
from gyges.memory.cuda_driver import open_driver
from gyges.memory.table import PageTable


def main(about: dict[str, Any], maker: str = "") -> dict[int, int]:
    import torch

    driver = open_driver(0, maker)
    descriptors = tuple(about["descriptors"])
    peer = CudaPeerMemory(descriptors, about["capacity"], about["page_bytes"], driver=driver)
    pages = PageTable(descriptors[0]).part(about["start"], about["slots"]).tolist()
    words = about["page_bytes"] // 4
    memory = peer.tensor().view(torch.int32)
    found = {slot: int(memory[page * words]) for slot, page in enumerate(pages) if page >= 0}
    peer.close()
    driver.close()
    return found


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]), *sys.argv[2:])))
