#!/usr/bin/env bash
# Sets everything up and builds the documentation into build/site, with every warning an error, dead links above all.
# `bash scripts/docs.sh serve` shows it at http://127.0.0.1:8000 while you write.
set -euo pipefail
EXTRAS=docs
source "$(dirname "$0")/setup.sh"
say "Building the documentation: about a minute"
exec .venv/bin/mkdocs "${@:-build}" -f docs/mkdocs.yml
