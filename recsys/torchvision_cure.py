"""Lets torchvision import beside a CPU build of torch.

torchvision's ordinary wheel is built against CUDA. Beside a CPU torch its library of operators is not loaded, and
`import torchvision` then fails with "operator torchvision::nms does not exist", and with it open_clip, timm and, as
they look for torchvision, transformers. Declaring the two operators' schemas first is enough: transforms and models
work, and the operators themselves (nms, deform_conv2d, image reading) still refuse to run, which nobody here asks for.

The finder below acts when torchvision is wanted, and only where torch has neither CUDA nor HIP. It costs nothing until
then. It stays in the list of finders: taking itself out while Python walks the list would make it pass over the next.
"""

import sys
from importlib.abc import MetaPathFinder

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_kept: list[object] = []
"""A torch.library.Library takes its declarations back when it is collected."""


class _Cure(MetaPathFinder):
    """Finds nothing: it is there to be asked for torchvision first."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname == "torchvision":
            declare_operators()
        return None


def declare_operators() -> None:
    import torch

    if torch.version.cuda is None and torch.version.hip is None and not _kept:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for schema in _SCHEMAS:
            library.define(schema)
        _kept.append(library)


def install() -> None:
    """Called when `recsys` is imported; does nothing where torchvision is imported already."""
    if "torchvision" not in sys.modules and not any(isinstance(finder, _Cure) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Cure())
