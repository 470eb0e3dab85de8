"""An example of each command, which its help shows."""

EXAMPLES = {
    "backends": "--timeout 120",
    "suites": "",
    "run": "inference --backend sscn --backend spconv --size 192",
    "boundary": "8 --backend sscn --size 768",
    "compare": "latest --report report",
    "history": "--report history",
    "profile": "--backend sscn --size 192 --batch 4 --out mine",
    "predict": "mine.root --weights trained.npz --out labels.h5",
    "train": "--events mine.root --out training --minutes 60",
    "study": "--out study --scale smoke",
    "study page": "study",
    "events": "info mine.root",
    "events info": "mine.root",
    "events view": "mine.root --event 3 --out event.html",
    "events simulate": "--size 192 --count 100 --seed 7 --out events.h5",
    "events fetch": "--size 192 --files 0",
    "events convert": "mine.root mine.h5",
    "events sample": "--out sample",
    "asv": "run HEAD~5..HEAD",
    "weights": "convert weights.npz native.pt --to minkowski",
    "weights convert": "weights.npz native.pt --to minkowski",
    "worker": "job.json",
}
"""Command -> its arguments."""
