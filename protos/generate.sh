#!/usr/bin/env bash
# Generate shared/fedsprig/wire/*_pb2.py from the .proto files. The generator needs another protobuf than Flower allows, so it
# gets an environment of its own; the generated code is committed and needs protobuf 6.33.5 or later, below 7.
set -euo pipefail
cd "$(dirname "$0")"
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
python=${PROTOC_PYTHON:-}
if [ -z "$python" ]; then
    python3 -m venv "$out/venv"
    "$out/venv/bin/pip" install --quiet grpcio-tools==1.81.1
    python=$out/venv/bin/python
fi
"$python" -m grpc_tools.protoc -I. --python_out="$out" --pyi_out="$out" fedsprig/v1/*.proto
cp "$out"/fedsprig/v1/*_pb2.py "$out"/fedsprig/v1/*_pb2.pyi ../shared/fedsprig/wire/
