"""MobileNetV2 in int8: on how many images does it give float32's class? Beside ONNX Runtime's quantiser and NNCF's.

Calibrated on 100 ImageNet images, judged on 900 others; weights are torchvision's. The images are training images, most
likely, so nothing is said of accuracy. Of 4-bit weights the first and the last layer have none. The same file is run in
OpenVINO too. The last line is JSON.

    python benchmarks/int8_agreement.py imagenet-sample-1000.npz mobilenet_v2-b0353104.pth
"""

import argparse
import io
import itertools
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from edgewise import models
from edgewise.data import normalize
from edgewise.export.onnx import export
from edgewise.export.verify import outputs, rms_error
from edgewise.quantize import Quantize, Quantizer
from edgewise.quantize.schemes import SCHEMES
from int8_grid import nncf_onnx, theirs_static, u8s8

CALIBRATION = 100
RUNTIMES = ("onnxruntime", "openvino")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def load(pack: Path) -> Tensor:
    """Return all images of a pack, normalised, in an order that no class rules."""
    with np.load(pack) as archive:
        encoded, offsets = archive["data"].tobytes(), archive["offsets"]
    pixels = [
        np.asarray(Image.open(io.BytesIO(encoded[start:end])).convert("RGB")).transpose(2, 0, 1)
        for start, end in itertools.pairwise(offsets)
    ]
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    return normalize(torch.from_numpy(np.stack(pixels))[order], MEAN, STD)


def main() -> None:
    """Print a row a quantiser."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--out", type=Path, help="a JSON file")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    images = load(options.images)
    calibration, judged = images[:CALIBRATION], images[CALIBRATION:]
    model = models.build("mobilenet_v2", classes=1000, channels=3, size=224)
    model = models.load_weights(model, options.weights).eval()
    rows = []
    with TemporaryDirectory(prefix="edgewise-") as temporary:
        folder = Path(temporary)
        source = export(model, images[:1], folder / "float32.onnx", names=True)
        expected = outputs(source, judged)

        def judge(name: str, make: Callable[[Path], Path], runtime: str = "onnxruntime") -> Tensor:
            started = time.perf_counter()
            path = make(folder / f"{len(rows)}.onnx")
            seconds = time.perf_counter() - started
            found = outputs(path, judged, runtime=runtime)
            same = (found.argmax(1) == expected.argmax(1)).double().mean().item()
            figures = {"agreement": same, "error": rms_error(found, expected), "seconds": seconds}
            rows.append({"name": name, "runtime": runtime, **figures, "file_bytes": path.stat().st_size})
            print(f"{name:34} {same:7.2%}  error {figures['error']:.3f}  {seconds:5.1f} s", flush=True)
            return found

        first = Quantizer(source, calibration)
        ours = judge("ours", lambda out: Quantizer(source, calibration).write(out))
        there = judge("ours, in OpenVINO", first.write, "openvino")
        equal = (ours.argmax(1) == there.argmax(1)).double().mean().item()
        exact = Quantizer(source, calibration, Quantize(bit_exact=True))
        apart = [judge(f"ours, bit_exact, in {runtime}", exact.write, runtime) for runtime in RUNTIMES]
        equal_codes = (apart[0].argmax(1) == apart[1].argmax(1)).double().mean().item()
        for count in (2, 9):
            judge(
                f"ours, {count} first layers in floats", lambda out, n=count: first.write(out, list(first.layers)[:n])
            )
        for observer in ("minmax", "percentile", "mse", "entropy"):
            config = Quantize(observer=observer, percentile=99.99)  # type: ignore[arg-type]
            judge(f"ours, {observer}", lambda out, c=config: Quantizer(source, calibration, c).write(out))
        few = dict.fromkeys(list(first.layers)[1:-1], 4)
        ways = {"nearest": {}, "equalized": {"equalize": True}, "adaround": {"rounding": "adaround"}}
        for name, settings in ways.items():
            source_of = Quantizer(source, calibration, Quantize(**settings))
            for bits, widths in (("8", None), ("4", few)):
                judge(
                    f"ours, {name}, {bits} bits a weight",
                    lambda out, q=source_of, b=widths: q.write(out, simulated=q.simulated(bits=b)),
                )
        for name, scheme in SCHEMES.items():
            if name != "int8_static":
                judge(f"ours, {name}", lambda out, s=scheme: s.write(first, out))
        judge("ONNX Runtime", lambda out: theirs_static(source, out, calibration, **u8s8()))
        judge("ONNX Runtime, defaults", lambda out: theirs_static(source, out, calibration))
        judge("NNCF", lambda out: nncf_onnx(source, out, calibration))
        started = time.perf_counter()
        Quantizer(source, images[:128]).write(folder / "timed.onnx")
        seconds = time.perf_counter() - started
    print(f"one file in ONNX Runtime and in OpenVINO: {equal:.2%} equal, with bit_exact {equal_codes:.2%}")
    print(f"the outputs of the latter: error {rms_error(*apart):.1e}; 128 images take {seconds:.1f} s")
    threads = {"threads": torch.get_num_threads()}
    found = {"rows": rows, "calibration": len(calibration), "judged": len(judged), "equal_in_openvino": equal}
    found |= {"equal_in_openvino_bit_exact": equal_codes, "error_in_openvino_bit_exact": rms_error(*apart)}
    content = json.dumps(found | {"seconds_128": seconds} | threads, indent=1)
    print(content) if options.out is None else options.out.write_text(content + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
