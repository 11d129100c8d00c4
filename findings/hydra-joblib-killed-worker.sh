#!/usr/bin/env bash
# hydra-joblib-launcher 1.2.0 (joblib 1.6.0): a job that is killed takes the others with it. Of three jobs at a time one is killed, as for memory;
# the pool kills its other workers, Hydra leaves with a TerminatedWorkerError, and no job of the sweep has ended.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet hydra-core==1.3.8 hydra-joblib-launcher==1.2.0 joblib==1.6.0
venv/bin/python - <<'PYTHON'
import pathlib, subprocess, sys, time
open("job.py", "w").write("""
import os, pathlib, signal, time, hydra
@hydra.main(version_base=None, config_path=None)
def main(cfg):
    time.sleep(2)
    if cfg.x == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(4)
    pathlib.Path(os.environ["PLACE"], f"ended-{cfg.x}").touch()
main()
""")
sweep = [sys.executable, "job.py", "-m", "+x=0,1,2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=3"]
done = subprocess.run(sweep, capture_output=True, text=True, env={"PLACE": str(pathlib.Path.cwd())})
time.sleep(8)
ended = sorted(path.name for path in pathlib.Path.cwd().glob("ended-*"))
print("exit code", done.returncode, "TerminatedWorkerError" in done.stderr, "jobs that ended:", ended)
assert done.returncode == 1 and "TerminatedWorkerError" in done.stderr and not ended
PYTHON
