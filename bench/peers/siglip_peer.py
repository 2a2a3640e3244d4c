"""Peers of siglip-kernel: the PyPI package of that name, torch eager and torch.compile. See peer.py for the protocol."""
import importlib
import importlib.metadata

from peer import Peers, serve


def package(name):
    """Imports a peer and tells its version."""
    module = importlib.import_module(name.replace("-", "_"))
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # unpacked by hand
        return getattr(module, "__version__", "of unknown version")


def plain(torch, img, txt, log_temp, bias):
    """The loss as one writes it in torch, B x B logits in the dtype of the inputs: -1/B sum of log sigmoid(y z)."""
    logits = img @ txt.T * log_temp.exp() + bias
    labels = 2 * torch.eye(img.shape[0], device=img.device, dtype=logits.dtype) - 1
    return -torch.nn.functional.logsigmoid(labels * logits).sum() / img.shape[0]


class Step:
    """Loss and all gradients (`step`), or the loss with gradients off (`forward`)."""

    def __init__(self, torch, request):
        name, shape = request["impl"], request["shape"]
        dtype = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}[request["dtype"]]
        self.torch = torch
        self.with_gradients = request["op"] == "step"

        def unit_rows():
            rows = torch.randn(shape["B"], shape["D"], device="cuda")
            return (rows / rows.norm(dim=1, keepdim=True)).to(dtype).requires_grad_(self.with_gradients)

        scalar = lambda value: torch.tensor(value, device="cuda", requires_grad=self.with_gradients)
        self.inputs = (unit_rows(), unit_rows(), scalar(request["log_temp"]), scalar(request["bias"]))
        self.loss = self.function(name)

    def function(self, name):
        torch = self.torch
        if name == "torch eager":
            return lambda *inputs: plain(torch, *inputs)
        if name == "torch.compile":
            torch.compiler.reset()  # compiled for this one shape, as a training loop would
            return torch.compile(lambda *inputs: plain(torch, *inputs), dynamic=False)
        import siglip_kernel

        if name == "siglip-kernel":
            return siglip_kernel.fused_siglip_loss
        if name == "siglip-kernel c=1024":
            return lambda *inputs: siglip_kernel.fused_chunked_bf16_siglip_loss(*inputs, chunk_size=1024)
        if name == "siglip-kernel fp8":
            return lambda *inputs: siglip_kernel.fused_chunked_bf16_siglip_loss(*inputs, use_fp8=True)
        raise ValueError(f"unknown impl {name!r}")

    def clear(self):
        for tensor in self.inputs:
            tensor.grad = None

    def __call__(self):
        self.clear()
        if self.with_gradients:
            self.loss(*self.inputs).backward()
        else:
            with self.torch.no_grad():
                self.loss(*self.inputs)


IMPLS = {
    "siglip-kernel": lambda: package("siglip-kernel"),
    "siglip-kernel c=1024": lambda: package("siglip-kernel"),
    "siglip-kernel fp8": lambda: package("siglip-kernel"),
    "torch eager": lambda: package("torch"),
    "torch.compile": lambda: package("torch"),
}

if __name__ == "__main__":
    serve(Peers(IMPLS, Step))
