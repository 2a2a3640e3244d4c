"""Peers of maxsim-kernel: late-interaction-kernels and flash-maxsim from PyPI, torch eager. See peer.py for the protocol.

Shapes have Nq, Nd, Lq, Ld, d, and K when each query has K documents of its own (knowledge distillation).
"""
import importlib.metadata

from peer import Peers, serve


def package(name):
    """Imports a peer and tells its version."""
    __import__(name.replace("-", "_"))
    return importlib.metadata.version(name)


def plain(torch, queries, docs):
    """The scores as one writes them in torch: all similarities at once."""
    if docs.dim() == 4:
        return torch.einsum("qid,qkjd->qkij", queries, docs).amax(-1).float().sum(-1)
    return torch.einsum("qid,njd->qnij", queries, docs).amax(-1).float().sum(-1)


class Scores:
    """Scores (`forward`), or scores and the gradients of both sides for given gradients of the scores (`step`)."""

    def __init__(self, torch, request):
        name, shape = request["impl"], request["shape"]
        dtype = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}[request["dtype"]]
        self.torch = torch
        self.with_gradients = request["op"] == "step"

        def unit_rows(*axes):
            rows = torch.randn(*axes, shape["d"], device="cuda")
            return (rows / rows.norm(dim=-1, keepdim=True)).to(dtype).requires_grad_(self.with_gradients)

        candidates = (shape["Nq"], shape["K"]) if "K" in shape else (shape["Nd"],)
        self.inputs = (unit_rows(shape["Nq"], shape["Lq"]), unit_rows(*candidates, shape["Ld"]))
        self.scores = self.function(name, "K" in shape)
        columns = shape.get("K", shape.get("Nd"))
        self.d_scores = torch.randn(shape["Nq"], columns, device="cuda")

    def function(self, name, candidates):
        torch = self.torch
        if name == "torch eager":
            return lambda queries, docs: plain(torch, queries, docs)
        if name.startswith("late-interaction-kernels"):
            from late_interaction_kernels import maxsim

            backward = "lowmem" if name.endswith("lowmem") else "auto"
            return lambda queries, docs: maxsim(queries, docs, backward=backward)
        if name == "flash-maxsim":
            import flash_maxsim

            if candidates or not self.with_gradients:
                if candidates:
                    raise ValueError("flash-maxsim is measured on crosses only")
                if self.inputs[0].shape[0] == 1:
                    return lambda queries, docs: flash_maxsim.flash_maxsim(queries[0], docs)
                return lambda queries, docs: flash_maxsim.flash_maxsim_batched(queries, docs, pad_lq=False)
            return lambda queries, docs: flash_maxsim.flash_maxsim_batched_train(queries, docs)
        raise ValueError(f"unknown impl {name!r}")

    def clear(self):
        for tensor in self.inputs:
            tensor.grad = None

    def __call__(self):
        self.clear()
        if self.with_gradients:
            scores = self.scores(*self.inputs)
            scores.backward(self.d_scores.to(scores.dtype))
        else:
            with self.torch.no_grad():
                self.scores(*self.inputs)


IMPLS = {
    "late-interaction-kernels": lambda: package("late-interaction-kernels"),
    "late-interaction-kernels lowmem": lambda: package("late-interaction-kernels"),
    "flash-maxsim": lambda: package("flash-maxsim"),
    "torch eager": lambda: package("torch"),
}

if __name__ == "__main__":
    serve(Peers(IMPLS, Scores))
