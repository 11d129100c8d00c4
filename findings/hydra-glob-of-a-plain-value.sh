#!/usr/bin/env bash
# hydra-core 1.3.8: a sweep over glob(*) of a value that is no config group runs no job at all and exits with 0, so a script that checks the exit
# code believes that it swept.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet hydra-core==1.3.8
venv/bin/python - <<'PYTHON'
import subprocess, sys
open("job.py", "w").write("import hydra\n@hydra.main(version_base=None, config_path=None)\ndef main(cfg):\n    print('ran', cfg)\nmain()\n")
done = subprocess.run([sys.executable, "job.py", "-m", "+x=glob(*)"], capture_output=True, text=True)
print(done.stdout.strip(), "exit code:", done.returncode)
assert done.returncode == 0 and "Launching 0 jobs" in done.stdout and "ran" not in done.stdout
PYTHON
