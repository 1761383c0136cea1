"""How far TensorRT's builder is, shown as the progress of every long job of this package."""

from __future__ import annotations

from typing import Any

from vitdeploy.progress import Progress

# A phase of fewer steps says little of the time left: of `Building engine`, with six, one step takes nearly all of it.
LEAST_STEPS = 8


def show_progress(trt: Any, config: Any) -> None:
    """Show how far a build with this configuration is; TensorRT 8 does not tell."""
    if not hasattr(trt, "IProgressMonitor"):
        return

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._phases: dict[str, Progress] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if num_steps >= LEAST_STEPS:
                progress = Progress(f"building the engine, {phase_name[:1].lower()}{phase_name[1:]}", num_steps)
                self._phases[phase_name] = progress.__enter__()

        def step_complete(self, phase_name: str, step: int) -> bool:
            progress = self._phases.get(phase_name)
            if progress is not None:
                progress.advance()
            return True  # go on

        def phase_finish(self, phase_name: str) -> None:
            progress = self._phases.pop(phase_name, None)
            if progress is not None:
                progress.__exit__(None, None, None)

    config.progress_monitor = Monitor()
