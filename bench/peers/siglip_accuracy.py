"""Errors of xtask eval siglip, torch eager and siglip-kernel 0.1.2 against f64, on the same inputs as rounded to their dtype.

    python3 bench/peers/siglip_accuracy.py path/to/xtask [B D | pairs.safetensors exp(log_temp) bias]

The inputs are random unit rows, or the matrices `query` and `code` of a file. Prints, for each dtype and implementation, the relative error of the loss and max|d| / max|ref| and |d|2 / |ref|2 of both gradients.
"""
import math
import subprocess
import sys
import tempfile

import torch
from siglip_peer import plain
from safetensors.torch import load_file, save_file

LOG_TEMP, BIAS = math.log(10.0), -10.0  # SigLIP's initial ones


def by_autograd(img, txt, dtype, function):
    img, txt = (x.to(dtype).detach().requires_grad_() for x in (img, txt))
    scalar = torch.float64 if dtype == torch.float64 else torch.float32
    scalars = [torch.tensor(x, device="cuda", dtype=scalar, requires_grad=True) for x in (LOG_TEMP, BIAS)]
    loss = function(img, txt, *scalars)
    loss.backward()
    return {"loss": loss.detach(), "d_img": img.grad, "d_txt": txt.grad, "d_log_temp": scalars[0].grad, "d_bias": scalars[1].grad}


def by_xtask(xtask, img, txt, route="auto"):
    with tempfile.TemporaryDirectory() as folder:
        scalars = {"log_temp": torch.tensor(LOG_TEMP), "bias": torch.tensor(BIAS)}
        save_file({"img": img.cpu().contiguous(), "txt": txt.cpu().contiguous(), **scalars}, f"{folder}/in.safetensors")
        command = [xtask, "eval", "siglip", "--input", f"{folder}/in.safetensors", "--output", f"{folder}/out.safetensors", "--device", "cuda:0"]
        command += ["--route", route]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return {name: tensor.cuda() for name, tensor in load_file(f"{folder}/out.safetensors").items()}


def report(dtype, name, run, truth):
    try:
        found = run()
    except Exception as error:  # the peer may lack the dtype: say so and go on
        print(f"{str(dtype)[6:]:9s} {name:22s} MISSING: {error}")
        return
    errors = [f"loss {abs(float(found['loss']) / float(truth['loss']) - 1):.1e}"]
    for scalar in ("d_log_temp", "d_bias"):
        errors.append(f"{scalar} {abs(float(found[scalar]) / float(truth[scalar]) - 1):.1e}")
    for gradient in ("d_img", "d_txt"):
        delta, ref = found[gradient].double() - truth[gradient], truth[gradient]
        errors.append(f"{gradient} max {float(delta.abs().max() / ref.abs().max()):.2e} l2 {float(delta.norm() / ref.norm()):.2e}")
    print(f"{str(dtype)[6:]:9s} {name:22s} {'  '.join(errors)}", flush=True)


def inputs():
    """Two matrices of f32 on the device."""
    global LOG_TEMP, BIAS
    if len(sys.argv) == 5:
        pairs = load_file(sys.argv[2])
        LOG_TEMP, BIAS = math.log(float(sys.argv[3])), float(sys.argv[4])
        return [pairs[name].float().cuda() for name in ("query", "code")]
    batch, dim = (int(x) for x in sys.argv[2:4] or (8192, 768))
    torch.manual_seed(0)
    return [torch.nn.functional.normalize(torch.randn(batch, dim, device="cuda"), dim=1) for _ in range(2)]


def peer(function, **options):
    import siglip_kernel

    return lambda *inputs: getattr(siglip_kernel, function)(*inputs, **options)


def main():
    xtask = sys.argv[1]
    loss = lambda *inputs: plain(torch, *inputs)
    torch.backends.cuda.matmul.allow_tf32 = False
    rows = inputs()
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        img, txt = (x.to(dtype) for x in rows)
        truth = by_autograd(img, txt, torch.float64, loss)
        report(dtype, "ours", lambda: by_xtask(xtask, img, txt), truth)
        if dtype != torch.float32:
            for route in ("fp8", "int8"):
                report(dtype, f"ours, {route}", lambda: by_xtask(xtask, img, txt, route), truth)
        report(dtype, "torch eager", lambda: by_autograd(img, txt, dtype, loss), truth)
        report(dtype, "siglip-kernel 0.1.2", lambda: by_autograd(img, txt, dtype, peer("fused_siglip_loss")), truth)
        if dtype == torch.bfloat16:
            quantised = lambda: by_autograd(img, txt, dtype, peer("fused_chunked_bf16_siglip_loss", use_fp8=True))
            report(dtype, "siglip-kernel fp8", quantised, truth)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
