"""What lies where in a run folder, by name; nothing else is imported here, so that pages are quick to write."""

from pathlib import Path

RECIPE, MANIFEST, RESULTS, REPORT = "recipe.toml", "manifest.json", "results.json", "report.html"
EVENTS = "events.jsonl"
DENSE, STEPS = "dense", "steps"
FIRST, START = "00-start", "start.json"  # in STEPS: the network the run starts from, and what it was made of

# In a step's folder; the last one's artifact is the run's.
ARTIFACT, RESULT = "model.onnx", "result.json"
CHECKPOINT, EPOCHS = "checkpoint.safetensors", "epochs.json"  # while a training lasts: its state, and seconds
SNAPSHOTS = "snapshots"  # likewise, a folder: what the network was along the way
# What is shipped in place of it, by the format that an export step asks for.
SHIPPED = {"openvino": "model.xml", "executorch": "model.pte", "litert": "model.tflite"}


def shipped(folder: Path) -> Path:
    """Return the file of a folder that is to run on the device: the artifact, or what was made of it."""
    return next((folder / name for name in SHIPPED.values() if (folder / name).exists()), folder / ARTIFACT)


def step_folder(folder: Path, index: int, kind: str) -> Path:
    """Return where the step at an index, counted from 0, leaves what it made."""
    return folder / STEPS / f"{index + 1:02d}-{kind}"
