"""Forms of attention, each held against NVIDIA's compiler: which become one kernel, and what the rules say of them.

pip install 'vitdeploy[nvidia]'
python benchmarks/attention_forms.py            # prints where the rules and the compiler disagree
python benchmarks/attention_forms.py --write    # also writes benchmarks/results/attention_forms.json
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from operator_compiler import OK, compiled
from operator_variants import Net

from vitdeploy.graph.attention import find_attentions
from vitdeploy.platforms.boards import find_platform
from vitdeploy.platforms.fusion_rules import judge_attention
from vitdeploy.tensorrt.rtx import requirements

RESULTS = Path(__file__).parent / "results" / "attention_forms.json"
PLATFORM = "tensorrt10.16"
HEADS = (8, 9, 10, 12, 15, 16, 18, 20, 24, 32, 36, 40, 48, 64, 72, 80, 96, 128, 160, 192, 256, 264)
LENGTHS = ((1, 196), (49, 49), (64, 3136), (196, 49), (3136, 3136), (7, 7), (16, 65504), (16, 70000))


@dataclass(frozen=True)
class Form:
    """Softmax between two products; rank 4 unless `rank` is 3.

    batch, heads, kv_heads, queries, keys, head  sizes
    half     FP16, else FP32
    scale    what is scaled: "", "query" or "scores"
    mask     shape of what is added to the scores
    where    whether a mask of flags chooses instead
    casts    whether the softmax computes in FP32 between two Casts
    constant whether the queries are the same for every image
    """

    batch: int = 1
    heads: int = 4
    kv_heads: int = 0
    queries: int = 196
    keys: int = 196
    head: int = 32
    half: bool = True
    scale: str = ""
    mask: tuple[int, ...] = ()
    where: bool = False
    casts: bool = False
    constant: bool = False
    rank: int = 4

    @property
    def name(self) -> str:
        """What differs from the usual form."""
        usual = Form()
        said = {field: getattr(self, field) for field in self.__dataclass_fields__}
        words = [f"{field}={value}" for field, value in said.items() if value != getattr(usual, field)]
        return " ".join(words).replace(", ", "x") or "usual"

    def model(self) -> bytes:
        kind = np.float16 if self.half else np.float32
        net, groups = Net(19), self.kv_heads or self.heads
        lead = (lambda heads: (heads,)) if self.rank == 3 else (lambda heads: (self.batch, heads))
        shape = (*lead(self.heads), self.queries, self.head)
        query = net.constant(np.sin(np.arange(np.prod(shape))).reshape(shape).astype(kind)) if self.constant else None
        query = query or net.given(kind, *shape)
        key = net.given(kind, *lead(groups), self.head, self.keys)
        value = net.given(kind, *lead(groups), self.keys, self.head)
        if self.scale == "query":
            query = net.node("Mul", query, np.array(0.1, kind))
        scores = net.node("MatMul", query, key)
        if self.scale == "scores":
            scores = net.node("Mul", scores, np.array(0.1, kind))
        if self.mask and self.where:
            flags = (np.arange(np.prod(self.mask)) % 3 > 0).reshape(self.mask)
            scores = net.node("Where", flags, scores, np.array(-1e4, kind))
        elif self.mask:
            bias = np.sin(np.arange(np.prod(self.mask))).reshape(self.mask).astype(kind)
            scores = net.node("Add", scores, bias)
        if self.casts:
            scores = net.node("Cast", scores, to=TensorProto.FLOAT)
        shares = net.node("Softmax", scores, axis=-1)
        if self.casts:
            shares = net.node("Cast", shares, to=TensorProto.FLOAT16)
        net.node("MatMul", shares, value)
        return net.model()


def forms() -> Iterator[Form]:
    """Every form that is asked for."""
    for head, half, batch in itertools.product(HEADS, (True, False), (1, 8)):
        yield Form(head=head, half=half, batch=batch)
    for (queries, keys), half in itertools.product(LENGTHS, (True, False)):
        yield Form(queries=queries, keys=keys, half=half)
    for batch, queries, head, constant in itertools.product((1, 2, 8), (64, 196), (32, 64), (False, True)):
        yield Form(batch=batch, heads=1, queries=queries, keys=queries, head=head, constant=constant)
    for heads, batch, constant in itertools.product((2, 3, 8), (1, 8), (False, True)):
        yield Form(heads=heads, batch=batch, constant=constant)
    for heads, batch in itertools.product((4, 8), (1, 2, 8)):  # products broadcast one head of keys, not two
        yield Form(heads=heads, kv_heads=1, batch=batch)
    for head, scale, casts, rank, masked in itertools.product(
        (12, 20, 32, 36), ("", "scores"), (False, True), (3, 4), (False, True)
    ):
        mask = ((4, 196, 196) if rank == 3 else (1, 4, 196, 196)) if masked else ()
        yield Form(head=head, scale=scale, casts=casts, rank=rank, mask=mask)
    for head, heads, half in itertools.product((8, 20, 32, 64), (1, 4), (True, False)):
        yield Form(queries=1, head=head, heads=heads, half=half)
    for scale, mask, batch in itertools.product(("query", "scores"), ((), (1, 4, 196, 196)), (1, 8)):
        yield Form(scale=scale, mask=mask, batch=batch)
    for mask, where, batch in itertools.product(
        ((1, 1, 196, 196), (1, 4, 196, 196), (1, 1, 1, 196), (1, 4, 1, 196), (1, 4, 196, 1)), (False, True), (1, 8)
    ):
        yield Form(mask=mask, where=where, batch=batch)
    for casts, mask, scale in itertools.product((True,), ((), (1, 4, 196, 196)), ("", "scores")):
        yield Form(casts=casts, mask=mask, scale=scale)
    for heads, half, casts in itertools.product((1, 4), (True, False), (False, True)):
        if half or not casts:
            yield Form(rank=3, heads=heads, half=half, casts=casts)
    for batch, mask in itertools.product((64,), ((), (1, 4, 49, 49), (64, 1, 49, 49))):
        yield Form(batch=batch, queries=49, keys=49, mask=mask)


def measured(chosen: list[Form]) -> list[bool | None]:
    """Whether each becomes one kernel; None where it does not compile."""
    return [
        any("mha" in layer for layer in layers) if verdict == OK else None
        for verdict, layers in compiled([form.model() for form in chosen])
    ]


def judged(form: Form, platform: str = PLATFORM) -> tuple[bool | None, list[str]]:
    """What the rules say of a form, and which of them it breaks; None where no attention is found."""
    model = ir.from_proto(onnx.shape_inference.infer_shapes(onnx.load_model_from_string(form.model())))
    blocks = [judge_attention(found, find_platform(platform)) for found in find_attentions(model.graph)]
    if not blocks:
        return None, []
    return blocks[0].fuses, [rule.name for rule in blocks[0].rules if rule.holds is False]


def results() -> dict[str, Any]:
    chosen = list(dict.fromkeys(forms()))
    return {
        "compiler": requirements.NAME,
        "version": requirements.version(),
        "sm": requirements.DEFAULT_SM,
        "forms": {form.name: fused for form, fused in zip(chosen, measured(chosen), strict=True)},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    requirements.require()
    document = results()
    if options.write:
        RESULTS.write_text(json.dumps(document, indent=1) + "\n")
    known = {form.name: form for form in forms()}
    for name, fused in document["forms"].items():
        said, broken = judged(known[name])
        if said is not fused:
            print(f"{name:60} compiler: {fused}, rules: {said} {', '.join(broken)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
