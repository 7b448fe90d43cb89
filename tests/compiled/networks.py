"""Networks with named operators, which MindSpore compiles for many devices or runs on one. For compiler.py, under its Python."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mindspore
import numpy as np
from mindspore import Layout, Parameter, Tensor, nn, ops

if TYPE_CHECKING:
    from compiling import Draw, Setting
    from scaling import Scale, Scaled


def _weight(name: str, *shape: int) -> Parameter:
    return Parameter(Tensor(np.zeros(shape, np.float32)), name=name)


class Dense(nn.Cell):
    """A matrix product, and a bias."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = _weight("weight", inputs, outputs)
        self.bias = _weight("bias", outputs)
        self.matmul = ops.MatMul()
        self.add = ops.Add()

    def construct(self, x: Any) -> Any:
        return self.add(self.matmul(x, self.weight), self.bias)


class Document(nn.Cell):
    """The network of MindSpore's document on the transformation of checkpoints."""

    stages = (("layer1",), ("layer2", "layer3"))
    inputs = ((32, 784), (32,))

    def __init__(self) -> None:
        super().__init__()
        self.layer1, self.layer2, self.layer3 = Dense(784, 512), Dense(512, 512), Dense(512, 10)
        self.relu = ops.ReLU()

    def construct(self, x: Any) -> Any:
        return self.layer3(self.relu(self.layer2(self.relu(self.layer1(x)))))

    def shard(self, setting: Setting) -> None:
        for layer, cuts in setting.shards.items():
            getattr(self, layer).matmul.shard(cuts)


class Layers(nn.Cell):
    """Two dense layers in a list."""

    stages = (("layers.0",), ("layers.1",))
    inputs = ((8, 16), (8,))

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.CellList([Dense(16, 24), Dense(24, 32)])

    def construct(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer(x)
        return x

    def shard(self, setting: Setting) -> None:
        for name, cuts in setting.shards.items():
            self.layers[int(name[-1])].matmul.shard(cuts)


class Norm(nn.Cell):
    """RMSNorm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = _weight("weight", width)
        self.square, self.mean, self.rsqrt = ops.Square(), ops.ReduceMean(keep_dims=True), ops.Rsqrt()
        self.scale, self.mul, self.add = ops.Mul(), ops.Mul(), ops.Add()

    def construct(self, x: Any) -> Any:
        return self.mul(self.scale(x, self.rsqrt(self.add(self.mean(self.square(x), -1), 1e-5))), self.weight)

    def shard(self, dp: int) -> None:
        self.mul.shard(((dp, 1), (1,)))


class Linear(nn.Cell):
    """A matrix product with a weight that is stored as (outputs, inputs)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = _weight("weight", outputs, inputs)
        self.matmul = ops.MatMul(transpose_b=True)

    def construct(self, x: Any) -> Any:
        return self.matmul(x, self.weight)


class Block(nn.Cell):
    """One layer of a decoder: attention and a gated feed-forward network."""

    def __init__(self, width: int, heads: int, length: int) -> None:
        super().__init__()
        self.attention_norm, self.ffn_norm = Norm(width), Norm(width)
        self.wq, self.wk, self.wv, self.wo = (Linear(width, width) for _ in range(4))
        self.w1, self.w3, self.w2 = Linear(width, 2 * width), Linear(width, 2 * width), Linear(2 * width, width)
        self.split, self.joined = (-1, length, heads, width // heads), (-1, width)
        self.reshape, self.transpose, self.softmax, self.silu = ops.Reshape(), ops.Transpose(), ops.Softmax(), ops.Sigmoid()
        self.scores, self.attend = ops.BatchMatMul(transpose_b=True), ops.BatchMatMul()
        self.mul, self.add = ops.Mul(), ops.Add()

    def construct(self, x: Any) -> Any:
        normed = self.attention_norm(x)
        q, k, v = self._heads(self.wq(normed)), self._heads(self.wk(normed)), self._heads(self.wv(normed))
        attended = self.transpose(self.attend(self.softmax(self.scores(q, k)), v), (0, 2, 1, 3))
        x = self.add(x, self.wo(self.reshape(attended, self.joined)))
        normed = self.ffn_norm(x)
        gate = self.w1(normed)
        return self.add(x, self.w2(self.mul(self.mul(gate, self.silu(gate)), self.w3(normed))))

    def _heads(self, x: Any) -> Any:
        return self.transpose(self.reshape(x, self.split), (0, 2, 1, 3))

    def shard(self, dp: int, tp: int) -> None:
        for norm in (self.attention_norm, self.ffn_norm):
            norm.shard(dp)
        for linear in (self.wq, self.wk, self.wv, self.w1, self.w3):
            linear.matmul.shard(((dp, 1), (tp, 1)))
        for linear in (self.wo, self.w2):
            linear.matmul.shard(((dp, tp), (1, tp)))


class Decoder(nn.Cell):
    """A LLaMA-like network of two layers."""

    stages = (("embedding", "layers.0"), ("layers.1", "norm", "head"))
    inputs = ((16, 4), (64,))
    vocabulary = 128

    def __init__(self) -> None:
        super().__init__()
        width = 32
        self.embedding = nn.Cell()
        self.embedding.weight = _weight("embedding.weight", self.vocabulary, width)
        self.layers = nn.CellList([Block(width, 4, self.inputs[0][1]) for _ in range(2)])
        self.norm, self.head = Norm(width), Linear(width, self.vocabulary)
        self.gather, self.reshape = ops.Gather(), ops.Reshape()

    def construct(self, tokens: Any) -> Any:
        x = self.gather(self.embedding.weight, self.reshape(tokens, (-1,)), 0)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))

    def shard(self, setting: Setting) -> None:
        dp, tp = setting.shards["dp"], setting.shards["tp"]
        self.gather.shard(((tp, 1), (dp,)))
        for layer in self.layers:
            layer.shard(dp, tp)
        self.norm.shard(dp)
        self.head.matmul.shard(((dp, 1), (tp, 1)))


class Experts(nn.Cell):
    """Experts whose weights are cut over two axes: the expert dimension by data and expert parallelism, one more by tp."""

    inputs = ((8, 4, 16), (32,))

    def __init__(self) -> None:
        super().__init__()
        self.router = Linear(16, 16)
        self.w1, self.w2 = _weight("experts.w1", 8, 16, 32), _weight("experts.w2", 8, 32, 16)
        self.up, self.down, self.relu = ops.BatchMatMul(), ops.BatchMatMul(), ops.ReLU()
        self.reshape = ops.Reshape()

    def construct(self, x: Any) -> Any:
        y = self.down(self.relu(self.up(x, self.w1)), self.w2)
        return self.router(self.reshape(y, (-1, 16)))

    def shard(self, setting: Setting) -> None:
        mesh = Layout(tuple(setting.shards.values()), tuple(setting.shards))
        experts = ("dp", "ep")
        self.up.shard((mesh(experts, "None", "None"), mesh(experts, "None", "tp")))
        self.down.shard((mesh(experts, "None", "tp"), mesh(experts, "tp", "None")))


class _Doubled(nn.Cell):
    """A random parameter, times two."""

    def __init__(self, drawn: Any) -> None:
        super().__init__()
        dtype = getattr(mindspore, drawn.dtype)
        ones = Tensor(np.ones(drawn.shape), dtype)
        self.parameter = Parameter(ones, parallel_optimizer=drawn.parallel_optimizer)
        self.mul, self.two = ops.Mul().shard((drawn.cuts, ())), Tensor(2.0, dtype)

    def construct(self) -> Any:
        return self.mul(self.parameter, self.two)


class _Operand(nn.Cell):
    """A random parameter, the input of an operator that named axes divide; see scaling.py."""

    def __init__(self, scaled: Scaled) -> None:
        super().__init__()
        self.parameter = Parameter(
            Tensor(np.ones(scaled.shape), getattr(mindspore, scaled.dtype)), parallel_optimizer=scaled.parallel_optimizer
        )


class _Scaled(_Operand):
    """Times two."""

    def __init__(self, scaled: Scaled) -> None:
        super().__init__(scaled)
        self.mul, self.two = ops.Mul(), Tensor(2.0, getattr(mindspore, scaled.dtype))
        if scaled.kind != "default":
            self.mul.shard((tuple(map(scaled.count, scaled.dims)), ()))

    def construct(self) -> Any:
        return self.mul(self.parameter, self.two)


class _Multiplied(_Operand):
    """The second factor of a matrix product."""

    def __init__(self, scaled: Scaled) -> None:
        super().__init__(scaled)
        self.x, self.matmul = Tensor(np.ones((64, scaled.shape[0])), getattr(mindspore, scaled.dtype)), ops.MatMul()
        if scaled.kind == "named":
            mesh = Layout(tuple(scaled.sizes[axis] for axis in scaled.order), scaled.order)
            rows, *dims = (cuts or "None" for cuts in (scaled.rows, *scaled.dims))
            self.matmul.shard((mesh(rows, dims[0]), mesh(*dims)))
        else:
            rows, first, second = map(scaled.count, (scaled.rows, *scaled.dims))
            self.matmul.shard(((rows, first), (first, second)))

    def construct(self) -> Any:
        return self.matmul(self.x, self.parameter)


class _Gathered(_Operand):
    """A table of embeddings."""

    def __init__(self, scaled: Scaled) -> None:
        super().__init__(scaled)
        self.indices, self.gather = Tensor(np.zeros([64], np.int32)), ops.Gather()
        self.gather.shard(((scaled.count(scaled.dims[0]), 1), (scaled.count(scaled.rows),)))

    def construct(self) -> Any:
        return self.gather(self.parameter, self.indices, 0)


_CELLS = {"mul": _Scaled, "default": _Scaled, "matmul": _Multiplied, "named": _Multiplied, "gather": _Gathered, "drawn": _Doubled}


class Random(nn.Cell):
    """The sum of many random parameters."""

    def __init__(self, draw: Draw | Scale) -> None:
        super().__init__()
        self.parts = nn.CellList([_CELLS[drawn.kind](drawn) for drawn in draw.parameters])
        self.sum, self.cast = ops.ReduceSum(), ops.Cast()

    def construct(self, x: Any) -> Any:
        for cell in self.parts:
            x = x + self.cast(self.sum(cell()), mindspore.float32)
        return x


NETWORKS = {"document": Document, "layers": Layers, "decoder": Decoder, "experts": Experts}


def inputs(name: str) -> tuple[Any, Any]:
    """A batch and its labels."""
    kind = NETWORKS[name]
    rng = np.random.RandomState(4)
    shape, labels = kind.inputs
    if name == "decoder":
        x = Tensor(rng.randint(0, Decoder.vocabulary, shape).astype(np.int32))
    else:
        x = Tensor(rng.normal(size=shape).astype(np.float32))
    return x, Tensor(rng.randint(0, 10, labels).astype(np.int32))
