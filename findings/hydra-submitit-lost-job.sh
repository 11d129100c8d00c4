#!/usr/bin/env bash
# hydra-submitit-launcher 1.2.0 (submitit 1.5.4): a sweep ends with its first job that is lost. Of three jobs the first is killed, as by a dead
# node or for memory; Hydra leaves with an UncompletedJobError while the two others still run, waited for by nobody.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet hydra-core==1.3.8 hydra-submitit-launcher==1.2.0 submitit==1.5.4
venv/bin/python - <<'PYTHON'
import pathlib, subprocess, sys, time
open("job.py", "w").write("""
import os, pathlib, signal, time, hydra
@hydra.main(version_base=None, config_path=None)
def main(cfg):
    if cfg.x == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)
    pathlib.Path(os.environ["PLACE"], f"ended-{cfg.x}").touch()
main()
""")
sweep = [sys.executable, "job.py", "-m", "+x=0,1,2", "hydra/launcher=submitit_local"]
with open("said", "w") as said:  # no pipe, which the jobs that are left would hold open
    done = subprocess.run(sweep, stdout=said, stderr=said, env={"PLACE": str(pathlib.Path.cwd())})
told = pathlib.Path("said").read_text()
ended = sorted(path.name for path in pathlib.Path.cwd().glob("ended-*"))
print("exit code", done.returncode, "UncompletedJobError" in told, "jobs that had ended by then:", ended)
assert done.returncode == 1 and "UncompletedJobError" in told and not ended
time.sleep(70)
ended = sorted(path.name for path in pathlib.Path.cwd().glob("ended-*"))
print("and 70 seconds later:", ended)
assert ended == ["ended-1", "ended-2"]
PYTHON
