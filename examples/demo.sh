#!/usr/bin/env bash
# The digits project, the whole way: made, checked, trained by two workers, exported, registered, served, asked.
#
#   examples/demo.sh [FOLDER]      default: ./demo, which is made anew
#
# Ends with exit code 0 if everything was as promised, and always takes the service down.
set -euo pipefail

folder=${1:-demo}
png=data/7/0007.png
started=$SECONDS

heading() { printf '\n\033[1m== %s\033[0m  (%d s)\n' "$1" "$((SECONDS - started))"; }
show() { printf '$ %s\n' "$*" >&2; "$@"; }   # the words, then their output

# Supervisor and replicas, as the deployment shows them.
service_pids() {
    yard status --json --project "$project" | python -c '
import json, sys
deployment = json.load(sys.stdin)["deployment"] or {"replicas": []}
pids = [deployment.get("supervisor_pid"), *(item["pid"] for item in deployment["replicas"])]
print(*(pid for pid in pids if pid))'
}

take_down() {
    local code=$?
    trap - EXIT
    if [ -f "$project/yard.toml" ]; then
        heading "Down"
        pids=$(service_pids || true)
        show yard down --project "$project" || code=1
        for pid in $pids; do
            # A zombie has ended; only its parent has not asked how.
            if ps -o stat= -p "$pid" | grep -qv '^Z'; then
                echo "✗ process $pid is still running"
                code=1
            fi
        done
    fi
    exit "$code"
}

# An older demo may still be up: take it down before its folder goes.
if [ -f "$folder/digits/yard.toml" ]; then
    yard down --project "$folder/digits" > /dev/null || true
fi
rm -rf "$folder"
mkdir -p "$folder"
project=$(cd "$folder" && pwd)/digits
trap take_down EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

YARD_SERVE_PORT=$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
export YARD_SERVE_PORT   # every field of yard.toml can be set like this
url=http://127.0.0.1:$YARD_SERVE_PORT

heading "A new project"
cd "$folder"
show yard new digits --template image-classification
cd digits

heading "Preflight: project file, data, one real step, one real export"
show yard check

heading "Search: two short trials, each a training that is kept"
show yard tune --trials 2 train.epochs=1 train.workers=1

heading "The whole way: data, training, bundle, registry, service"
show yard up

heading "Again: nothing has changed, so nothing is run"
show yard up

heading "Ask the service over HTTP"
if command -v curl > /dev/null; then
    show curl --silent --show-error --fail -F "file=@$png" "$url/predict" | tee ../answer.json
    echo
    show curl --silent --show-error --fail "$url/metrics" > ../metrics.txt
else
    python - "$url" "$png" << 'PYTHON' | tee ../answer.json
import pathlib, sys, urllib.request
url, png = sys.argv[1:]
body = pathlib.Path(png).read_bytes()
request = urllib.request.Request(f"{url}/predict", body, {"content-type": "image/png"})
print(urllib.request.urlopen(request).read().decode())
pathlib.Path("../metrics.txt").write_bytes(urllib.request.urlopen(f"{url}/metrics").read())
PYTHON
fi

heading "The metrics of that request"
grep '^modelyard_request_duration_seconds_count.*protocol="predict"' ../metrics.txt
grep '^modelyard_predictions_total.*label="7"' ../metrics.txt

heading "Ask it from the command line"
show yard predict "$png"

heading "What there is"
show yard status
show yard models
show yard runs
report=$(yard report)

heading "Were the promises kept?"
yard status --json > ../status.json
python - << 'PYTHON'
import json, pathlib, re, sys

way = json.loads(pathlib.Path("../status.json").read_text())
run, parity = way["run"], way["bundle"]["parity"]
answer = json.loads(pathlib.Path("../answer.json").read_text())["predictions"][0]
counted = [
    float(line.rsplit(" ", 1)[1])
    for line in pathlib.Path("../metrics.txt").read_text().splitlines()
    if re.match(r'modelyard_request_duration_seconds_count\{.*code="200".*protocol="predict"', line)
    or re.match(r'modelyard_request_duration_seconds_count\{.*protocol="predict".*code="200"', line)
]
pids = [worker["pid"] for worker in run["workers"]]
accuracy = run["metrics"]["test/accuracy"]
checks = [
    (run["world_size"] == 2 and len(set(pids)) == 2, f"two workers trained: pids {pids}, world size {run['world_size']}"),
    (accuracy >= 0.97, f"test accuracy {accuracy:.4f} on pictures never trained on (at least 0.97)"),
    (parity["largest_error"] <= 1e-4, f"ONNX answers like {parity['framework']}: largest error {parity['largest_error']:.1e} (at most 1e-4)"),
    (answer["label"] == "7", f"a PNG of a 7, sent over HTTP, is a {answer['label']} ({answer['probability']:.1%})"),
    (sum(counted) == 1, f"that request is counted in /metrics: {sum(counted):.0f}"),
]
for kept, text in checks:
    print("✓" if kept else "✗", text)
sys.exit(0 if all(kept for kept, _ in checks) else 1)
PYTHON
echo
echo "Run report (open it in a browser): $report"
echo "Project: $project"
