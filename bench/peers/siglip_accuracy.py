"""Errors of xtask eval siglip, torch eager and siglip-kernel 0.1.2 against f64, on the same inputs as rounded to their dtype.

    python3 bench/peers/siglip_accuracy.py path/to/xtask [B D]

Prints, for each dtype and implementation, the relative error of the loss and max|d| / max|ref| and |d|2 / |ref|2 of both gradients.
"""
import math
import subprocess
import sys
import tempfile

import torch
from siglip_peer import plain
from safetensors.torch import load_file, save_file

LOG_TEMP, BIAS = math.log(10.0), -10.0


def by_autograd(img, txt, dtype, function):
    img, txt = (x.to(dtype).detach().requires_grad_() for x in (img, txt))
    scalar = torch.float64 if dtype == torch.float64 else torch.float32
    scalars = [torch.tensor(x, device="cuda", dtype=scalar, requires_grad=True) for x in (LOG_TEMP, BIAS)]
    loss = function(img, txt, *scalars)
    loss.backward()
    return {"loss": loss.detach(), "d_img": img.grad, "d_txt": txt.grad, "d_log_temp": scalars[0].grad, "d_bias": scalars[1].grad}


def by_xtask(xtask, img, txt):
    with tempfile.TemporaryDirectory() as folder:
        scalars = {"log_temp": torch.tensor(LOG_TEMP), "bias": torch.tensor(BIAS)}
        save_file({"img": img.cpu().contiguous(), "txt": txt.cpu().contiguous(), **scalars}, f"{folder}/in.safetensors")
        command = [xtask, "eval", "siglip", "--input", f"{folder}/in.safetensors", "--output", f"{folder}/out.safetensors", "--device", "cuda:0"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return {name: tensor.cuda() for name, tensor in load_file(f"{folder}/out.safetensors").items()}


def report(dtype, name, found, truth):
    errors = [f"loss {abs(float(found['loss']) / float(truth['loss']) - 1):.1e}"]
    for scalar in ("d_log_temp", "d_bias"):
        errors.append(f"{scalar} {abs(float(found[scalar]) / float(truth[scalar]) - 1):.1e}")
    for gradient in ("d_img", "d_txt"):
        delta, ref = found[gradient].double() - truth[gradient], truth[gradient]
        errors.append(f"{gradient} max {float(delta.abs().max() / ref.abs().max()):.2e} l2 {float(delta.norm() / ref.norm()):.2e}")
    print(f"{str(dtype)[6:]:9s} {name:22s} {'  '.join(errors)}", flush=True)


def main():
    xtask, batch, dim = sys.argv[1], *(int(x) for x in sys.argv[2:4] or (8192, 768))
    loss = lambda *inputs: plain(torch, *inputs)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.manual_seed(0)
    rows = [torch.nn.functional.normalize(torch.randn(batch, dim, device="cuda"), dim=1) for _ in range(2)]
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        img, txt = (x.to(dtype) for x in rows)
        truth = by_autograd(img, txt, torch.float64, loss)
        report(dtype, "ours", by_xtask(xtask, img, txt), truth)
        report(dtype, "torch eager", by_autograd(img, txt, dtype, loss), truth)
        try:
            from siglip_kernel import fused_siglip_loss

            report(dtype, "siglip-kernel 0.1.2", by_autograd(img, txt, dtype, fused_siglip_loss), truth)
        except Exception as error:  # the peer may lack the dtype: say so and go on
            print(f"{str(dtype)[6:]:9s} siglip-kernel 0.1.2    MISSING: {error}")
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
