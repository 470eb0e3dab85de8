"""The record: every field of one measurement, its type, unit, range and readers.

The writers (``harness.run``, ``harness.study``) fill a ``Measurement``;
``harness.results.store.append_record`` completes it to a ``Record``. ``harness.results.validation``
checks stored lines against this definition, and ``python -m harness.results.schema`` writes the
JSON Schema and the table in ``docs/records.md`` from it.
"""

# Without postponed annotations: TypedDict finds Required only in annotations that are evaluated.
from typing import Annotated, Literal, Required, TypedDict, get_args

from harness.spec.cell import Cell
from harness.spec.fields import Field

SCHEMA = 1
"""Version of the definition. Optional fields may be added without a new version."""

Outcome = Literal["ok", "unavailable", "timeout", "out-of-memory", "crashed", "wrong"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
"""From best to worst; a cell whose rounds disagree has the worst of them."""

Stop = Literal["spread", "samples", "budget"]
Scalar = str | int | float | bool | None

LONGEST = 1e9  # seconds, 30 years
LARGEST = 1e18  # bytes


class Memory(TypedDict, total=False):
    """Memory of one watched call, in bytes; absent or None where it was not measured."""

    limit_bytes: Annotated[
        int | None,
        Field(
            "Bound on the worker's own data; None for no bound.",
            "bytes",
            "harness.run.worker, harness.report.provenance",
            above=0,
            most=LARGEST,
        ),
    ]
    baseline_bytes: Annotated[
        int,
        Field(
            "Resident memory before the call.",
            "bytes",
            "harness.spec.metrics, harness.results.summary",
            least=0,
            most=LARGEST,
        ),
    ]
    peak_rss_bytes: Annotated[
        int,
        Field(
            "Peak resident memory during the call.",
            "bytes",
            "harness.spec.metrics, harness.results.summary, harness.study.results",
            least=0,
            most=LARGEST,
        ),
    ]
    rss_peak_reset: Annotated[
        bool,
        Field(
            "Whether the kernel reset the peak before the call; if not, the peak is that of the "
            "process so far.",
            readers="harness.results.summary",
        ),
    ]
    torch_allocated_bytes: Annotated[
        int,
        Field(
            "Peak of what torch's CUDA allocator handed out.",
            "bytes",
            "harness.study.results, harness.compare.rows",
            least=0,
            most=LARGEST,
        ),
    ]
    torch_reserved_bytes: Annotated[
        int,
        Field(
            "Peak of what torch's CUDA allocator held.",
            "bytes",
            "harness.compare.rows",
            least=0,
            most=LARGEST,
        ),
    ]
    outside_torch_bytes: Annotated[
        int,
        Field(
            "Device memory over the baseline that torch's allocator did not hold.",
            "bytes",
            "harness.compare.rows",
            least=0,
            most=LARGEST,
        ),
    ]
    nvml_peak_bytes: Annotated[
        int | None,
        Field(
            "Peak device memory by NVML.",
            "bytes",
            "harness.spec.metrics, harness.results.summary",
            least=0,
            most=LARGEST,
        ),
    ]
    nvml_baseline_bytes: Annotated[
        int | None,
        Field(
            "Device memory by NVML before the process used the device.",
            "bytes",
            "harness.spec.metrics, harness.results.summary",
            least=0,
            most=LARGEST,
        ),
    ]
    nvml_meaning: Annotated[
        Literal["process", "v2_used", "v1_used"] | None,
        Field(
            "The NVML counter behind the peak: of this process, or of the whole device.",
            readers="harness.report.provenance",
        ),
    ]
    nvml_interval_s: Annotated[
        float,
        Field(
            "Time between two NVML readings.",
            "s",
            "harness.report.provenance",
            above=0,
            most=LONGEST,
        ),
    ]


class Errors(TypedDict, total=False):
    """Errors against the float64 reference; None where there is none or it is not finite."""

    max_abs: Annotated[
        float | None,
        Field("Largest absolute error of a logit.", "", "harness.compare.rows", least=0),
    ]
    rel_rmse: Annotated[
        float | None,
        Field(
            "Root mean square error of the logits over the root mean square of the reference.",
            "",
            "harness.spec.metrics, harness.results.summary, harness.run.progress",
            least=0,
        ),
    ]
    argmax_agreement: Annotated[
        float | None,
        Field(
            "Share of sites with the reference's class.",
            "",
            "harness.spec.metrics, harness.compare.rows, harness.asv.track",
            least=0,
            most=1,
        ),
    ]
    grad_rel_rmse: Annotated[
        float | None,
        Field(
            "Relative error of all gradients together.",
            "",
            "harness.spec.metrics, harness.results.summary, harness.asv.track",
            least=0,
        ),
    ]
    worst_grad_rel_rmse: Annotated[
        float | None,
        Field(
            "Relative error of the gradient of the worst parameter.",
            "",
            "harness.compare.rows",
            least=0,
        ),
    ]
    statistics_rel_rmse: Annotated[
        float | None,
        Field(
            "Relative error of the running statistics of the worst normalisation.",
            "",
            "harness.compare.rows",
            least=0,
        ),
    ]
    loss_rel: Annotated[
        float | None,
        Field("Relative error of the loss.", "", "harness.compare.rows", least=0),
    ]


class LabelAccuracy(TypedDict, total=False):
    """Accuracy of the labels of a forward pass, on voxels with one of the five classes."""

    nonzero: Annotated[
        float,
        Field(
            "Mean over events of the share of voxels with the right label: the nonzero accuracy of "
            "the 2018 study.",
            "",
            "harness.spec.metrics, harness.results.labelling",
            least=0,
            most=1,
        ),
    ]
    voxels: Annotated[
        int,
        Field("Labelled voxels.", "voxels", "harness.results.labelling", least=0, most=1e15),
    ]
    voxel_share: Annotated[
        float,
        Field(
            "Share of all voxels with the right label.",
            "",
            "harness.compare.rows",
            least=0,
            most=1,
        ),
    ]
    event_labelled: Annotated[
        list[int],
        Field(
            "Labelled voxels of each event.",
            "voxels",
            "harness.results.labelling",
            least=0,
            most=1e15,
        ),
    ]
    event_correct: Annotated[
        list[int],
        Field(
            "Voxels with the right label of each event.",
            "voxels",
            "harness.results.labelling",
            least=0,
            most=1e15,
        ),
    ]
    confusion: Annotated[
        dict[str, list[int]],
        Field(
            "True class -> voxels by predicted class, in the order of the labels.",
            "voxels",
            "harness.results.labelling",
        ),
    ]
    class_accuracy: Annotated[
        dict[str, float | None],
        Field(
            "Class -> share of its voxels that got its label; None for a class without voxels.",
            "",
            "harness.results.labelling",
        ),
    ]
    class_purity: Annotated[
        dict[str, float | None],
        Field(
            "Class -> share of the voxels with its label that belong to it; None without any.",
            "",
            "harness.results.labelling",
        ),
    ]
    flips: Annotated[
        int | None,
        Field(
            "Voxels whose label differs from that of the float64 reference.",
            "voxels",
            "harness.spec.metrics, harness.results.labelling",
            least=0,
            most=1e15,
        ),
    ]
    lost: Annotated[
        int | None,
        Field(
            "Voxels with a wrong label that the float64 reference labels right.",
            "voxels",
            "harness.results.labelling",
            least=0,
            most=1e15,
        ),
    ]
    gained: Annotated[
        int | None,
        Field(
            "Voxels with the right label that the float64 reference labels wrong.",
            "voxels",
            "harness.results.labelling",
            least=0,
            most=1e15,
        ),
    ]
    shown_event: Annotated[
        int,
        Field(
            "Position of the event with the most voxels, for an event display.",
            "",
            "harness.results.labelling",
            least=0,
            most=1e15,
        ),
    ]
    shown_labels: Annotated[
        str,
        Field(
            "Labels of that event's voxels: one byte each, zlib, base64.",
            "",
            "harness.results.labelling",
            pattern=r"[A-Za-z0-9+/]*={0,2}",
        ),
    ]
    michel_true: Annotated[
        int,
        Field(
            "True Michel electrons that touch a track.",
            "",
            "harness.results.labelling",
            least=0,
            most=1e15,
        ),
    ]
    michel_found: Annotated[
        int,
        Field("Those with a candidate.", "", "harness.results.labelling", least=0, most=1e15),
    ]
    michel_candidates: Annotated[
        int,
        Field(
            "Predicted Michel electrons at the end of a predicted track.",
            "",
            "harness.results.labelling",
            least=0,
            most=1e15,
        ),
    ]
    michel_matched: Annotated[
        int,
        Field(
            "Candidates with a true Michel electron.",
            "",
            "harness.results.labelling",
            least=0,
            most=1e15,
        ),
    ]


class Condition(TypedDict, total=False):
    """State of the machine at one moment; GPU fields are None where NVML does not report them."""

    load: Annotated[
        float,
        Field(
            "Load average over one minute.",
            "processes",
            "harness.report.provenance",
            least=0,
            most=1e9,
        ),
    ]
    sm_clock_mhz: Annotated[
        int | None,
        Field("Clock of the GPU.", "MHz", "harness.report.provenance", least=0, most=1e6),
    ]
    temperature_c: Annotated[
        int | None,
        Field("Temperature of the GPU.", "°C", "harness.report.provenance", least=-273, most=1e3),
    ]
    power_limit_w: Annotated[
        float | None,
        Field("Power limit of the GPU.", "W", "harness.report.provenance", least=0, most=1e6),
    ]
    throttle: Annotated[
        list[str] | None,
        Field("Reasons for which the GPU's clock is held down.", "", "harness.results.summary"),
    ]


class Conditions(TypedDict, total=False):
    """Circumstances of the measurement."""

    before: Annotated[Condition, Field("Before the first call.")]
    after: Annotated[Condition, Field("After the last sample.")]
    stolen: Annotated[
        float | None,
        Field(
            "Share of all processors' time that the host of this virtual machine gave to others "
            "meanwhile; None where it is not counted.",
            "",
            "harness.results.summary, harness.compare.comparison",
            least=0,
            most=1,
        ),
    ]


class Machine(TypedDict, total=False):
    """The machine; empty where no worker started."""

    host: Annotated[str, Field("Host name.", "", "harness.report.provenance")]
    system: Annotated[str, Field("Operating system and kernel.", "", "harness.report.provenance")]
    processor: Annotated[
        str,
        Field("Processor.", "", "harness.results.environment, harness.history.series"),
    ]
    cores: Annotated[
        int | None,
        Field("Logical processors.", "", "harness.results.environment", above=0, most=1e6),
    ]
    memory_bytes: Annotated[
        int,
        Field("Physical memory.", "bytes", "harness.results.environment", above=0, most=LARGEST),
    ]
    threads: Annotated[
        int,
        Field(
            "Threads of torch.",
            "",
            "harness.results.environment, harness.history.series",
            above=0,
            most=1e6,
        ),
    ]
    affinity: Annotated[
        list[int],
        Field(
            "Logical processors that the worker may use.",
            "",
            "harness.results.environment",
            least=0,
            most=1e6,
        ),
    ]
    gpu: Annotated[
        str | None, Field("GPU.", "", "harness.results.environment, harness.history.series")
    ]
    gpu_uuid: Annotated[
        str | None, Field("NVML's identifier of the GPU.", "", "harness.report.provenance")
    ]
    driver: Annotated[
        str | None, Field("Version of the GPU's driver.", "", "harness.results.environment")
    ]
    ecc: Annotated[
        bool | None,
        Field("Whether the GPU's memory is error-corrected.", "", "harness.results.environment"),
    ]
    mig: Annotated[
        bool | None,
        Field("Whether the GPU is divided into instances.", "", "harness.results.environment"),
    ]
    nvml: Annotated[str, Field("Why NVML could not be used.", "", "harness.report.provenance")]


class Training(TypedDict, total=False):
    """A training of the study; present in its records only."""

    name: Annotated[str, Field("Name of the training.", "", "harness.study")]
    steps: Annotated[int, Field("Optimisation steps.", "", "harness.study", least=0, most=1e12)]
    events: Annotated[int, Field("Events seen.", "", "harness.study", least=0, most=1e15)]
    seconds: Annotated[
        float, Field("Training time, tests excluded.", "s", "harness.study", least=0, most=LONGEST)
    ]
    joules: Annotated[
        float | None, Field("Energy of the training.", "J", "harness.study", least=0, most=1e15)
    ]
    loss: Annotated[float, Field("Mean loss of the last 100 steps.", "", "harness.study")]
    accuracy: Annotated[
        float,
        Field("Mean nonzero accuracy of the last 100 steps.", "", "harness.study", least=0, most=1),
    ]


class Measurement(TypedDict, total=False):
    """The part of a record that a worker fills; fields are absent where it ended before them."""

    sites: Annotated[
        int | None,
        Field(
            "Active sites of the batch.",
            "sites",
            "harness.results.summary, harness.compare.figures",
            least=0,
            most=1e15,
        ),
    ]
    active_sites: Annotated[
        int,
        Field(
            "Active sites after the last convolution of a chain.",
            "sites",
            "harness.results.summary",
            least=0,
            most=1e15,
        ),
    ]
    skipped_empty: Annotated[
        int,
        Field(
            "Events without a site that were passed over while the batch was drawn.",
            "events",
            "harness.results.summary",
            least=0,
            most=1e15,
        ),
    ]
    allocator: Annotated[
        str,
        Field(
            "Policy of the C library's allocator, set before the worker imported the engine; "
            "absent where the library's own was in force.",
            readers="harness.report.provenance",
        ),
    ]
    tuning_seconds: Annotated[
        float,
        Field(
            "Time of the first call and of the calls until they got no faster, with the "
            "compilation and tuning of the engine; absent where the first call is the sample.",
            "s",
            "harness.spec.metrics, harness.report.provenance",
            above=0,
            most=LONGEST,
        ),
    ]
    host_seconds: Annotated[
        list[float],
        Field(
            "Time of each call by the host's clock, in order; not empty if the outcome is ok.",
            "s",
            "harness.results.summary, harness.asv.track, harness.run.progress",
            above=0,
            most=LONGEST,
        ),
    ]
    device_seconds: Annotated[
        list[float] | None,
        Field(
            "Time of the same calls by CUDA events; None without a GPU.",
            "s",
            "harness.results.summary, harness.compare.rows",
            above=0,
            most=LONGEST,
        ),
    ]
    budget_seconds: Annotated[
        float,
        Field(
            "Longest sampling of the cell in its round.",
            "s",
            "harness.run.resume",
            above=0,
            most=LONGEST,
        ),
    ]
    load_seconds: Annotated[
        float,
        Field(
            "Time to open the events and to read those of the batch, before the engine is built.",
            "s",
            "harness.report.provenance",
            least=0,
            most=LONGEST,
        ),
    ]
    turn_samples: Annotated[
        list[int],
        Field(
            "Samples of each turn, in order.",
            "samples",
            "harness.results.verdict",
            least=0,
            most=1e9,
        ),
    ]
    outliers: Annotated[
        list[int],
        Field(
            "Positions in host_seconds of samples more than three robust standard deviations from "
            "the median; no sample is removed.",
            "",
            "harness.results.summary",
            least=0,
            most=1e9,
        ),
    ]
    throttled: Annotated[
        list[int],
        Field(
            "Positions in host_seconds of samples taken while the GPU's clock was held down.",
            "",
            "harness.results.summary",
            least=0,
            most=1e9,
        ),
    ]
    stop: Annotated[
        Stop | None,
        Field(
            "Why sampling ended: spread reached, enough samples, or time spent.",
            "",
            "harness.results.summary",
        ),
    ]
    memory: Annotated[Memory, Field("Memory of a call.")]
    energy_joules: Annotated[
        float | None,
        Field(
            "Energy per event; None where there is no counter.",
            "J",
            "harness.spec.metrics, harness.compare.rows, harness.asv.track",
            least=0,
            most=1e15,
        ),
    ]
    error: Annotated[Errors, Field("Errors against the float64 reference.")]
    accuracy: Annotated[
        LabelAccuracy,
        Field("Accuracy of the labels of a trained network, where labels are known."),
    ]
    conditions: Annotated[Conditions, Field("Circumstances of the measurement.")]
    precision_readback: Annotated[
        dict[str, Scalar],
        Field(
            "Settings that decide the arithmetic, as read back from torch and the engine.",
            "",
            "harness.report.provenance",
        ),
    ]
    machine: Annotated[Machine, Field("The machine.")]
    versions: Annotated[
        dict[str, str | None],
        Field(
            "Versions of Python, sscn-bench, torch, NumPy, CUDA and the engine.",
            "",
            "harness.results.environment, harness.history.series",
        ),
    ]
    training: Annotated[Training, Field("The training, in records of the study.")]


class Entries(Measurement, total=False):
    """A measurement that has ended."""

    outcome: Required[
        Annotated[
            Outcome,
            Field(
                "How the measurement ended.",
                "",
                "harness.results.summary, harness.asv.track",
            ),
        ]
    ]
    reason: Annotated[
        str,
        Field("Why the outcome is not ok, in one sentence.", "", "harness.results.summary"),
    ]


class Record(Entries, total=False):
    """One measurement of one cell in one round: one line of a results file."""

    schema: Required[
        Annotated[
            int, Field("Version of this definition.", "", "harness.results.validation", least=1)
        ]
    ]
    run: Required[
        Annotated[
            str,
            Field(
                "Identity of the run: its start and a random suffix.",
                "",
                "harness.results.summary, harness.run.rounds",
            ),
        ]
    ]
    utc: Required[
        Annotated[
            str,
            Field(
                "When the record was written.",
                "UTC",
                "harness.results.store, harness.report.provenance, harness.history.series",
                pattern=r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ",
            ),
        ]
    ]
    commit: Required[
        Annotated[
            str,
            Field(
                "Commit of the measured engines; empty outside a repository.",
                "",
                "harness.results.store, harness.results.environment, harness.run.resume, "
                "harness.history.series",
                pattern="[0-9a-f]*",
            ),
        ]
    ]
    dirty: Annotated[
        bool,
        Field(
            "Whether tracked files differed from that commit.",
            "",
            "harness.results.environment, harness.report.provenance, harness.history.series",
        ),
    ]
    environment: Annotated[
        str,
        Field(
            "The environment that ``run --against-env`` names; absent for the default one.",
            "",
            "harness.results.environment, harness.run.resume, harness.history.series",
        ),
    ]
    round: Annotated[
        int,
        Field(
            "Number of the round within the run, from 0.",
            "",
            "harness.results.summary, harness.run.rounds",
            least=0,
            most=1e9,
        ),
    ]
    seed: Annotated[
        int,
        Field("Seed of the order of cells and turns.", "", "harness.run.rounds", least=-(2**63)),
    ]
    cell: Required[Annotated[Cell, Field("What was measured.")]]


def ended(measurement: Measurement, outcome: Outcome, reason: str = "") -> Entries:
    """Return the entries of a measurement that ended with an outcome, for a reason."""
    return {**measurement, "outcome": outcome, "reason": reason}


EMPTY: Measurement = {
    "sites": None,
    "host_seconds": [],
    "device_seconds": None,
    "stop": None,
    "memory": {},
    "energy_joules": None,
    "error": {},
    "precision_readback": {},
    "machine": {},
    "versions": {},
}
"""Fields that every record has, without values."""
