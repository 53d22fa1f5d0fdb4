#!/usr/bin/env bash
# The feature cache in CI, one step a call; docs/ci.md says how they fit together. The GitHub workflow, the GitLab one and
# tests/test_ci_cache.py all run this very file.
set -euo pipefail

FEATURE_OPTIONS="${FEATURE_OPTIONS:---dataset synthetic}" # what to extract: given to `mer fingerprint` and `mer extract` alike
FEATURE_KEY="${FEATURE_KEY:-}"                             # only where the media are not: the key that the store must have
STORE_URL="${STORE_URL:-}"                                 # a .tar or .tar.gz of the store (feats.h5 and feats.shards) to fall back on
STORE="${STORE:-data/ci/feats.h5}"                         # what CI caches is the folder of this file
TRAIN_OPTIONS="${TRAIN_OPTIONS:---preset fusion}"
RUN="${RUN:-runs/ci}"
BASELINE="${BASELINE:-runs/main}"                          # the run of the main branch
SUMMARY="${GITHUB_STEP_SUMMARY:-summary.md}"

stop() { echo "mer: $*" >&2; exit 1; }
output() { if [ -n "${GITHUB_OUTPUT:-}" ]; then echo "$1=$2" >>"$GITHUB_OUTPUT"; fi; }
field() { python -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"; }
block() { printf '### %s\n\n```text\n%s\n```\n\n' "$1" "$2" >>"$SUMMARY"; }
words() { xargs -r -n1 printf '%s\n' <<<"$1"; } # cut as a shell would, quotes included, without running anything

key() { # prints the key to restore the cache by
    local found=$FEATURE_KEY
    if [ -z "$found" ]; then found=$(mer fingerprint "${feature_options[@]}"); fi
    output key "$found"
    echo "$found"
}

download() { # the store of STORE_URL, next to nothing else
    rm -rf "$(dirname "$STORE")" && mkdir -p "$(dirname "$STORE")"
    curl --fail --silent --show-error --location --retry 3 "$STORE_URL" -o "$STORE.tar" || stop "STORE_URL cannot be fetched"
    tar -xf "$STORE.tar" -C "$(dirname "$STORE")" --no-same-owner && rm "$STORE.tar"
    [ -e "$STORE" ] || stop "STORE_URL holds no $(basename "$STORE") at its top"
}

held() { { mer inspect --json "$STORE" | field fingerprint; } 2>/dev/null || true; } # the key of the store at hand, if there is one

features() { # makes the store complete: no work if it was restored
    local report extracted=0
    if [ -n "$FEATURE_KEY" ]; then
        if [ "$(held)" != "$FEATURE_KEY" ] && [ -n "$STORE_URL" ]; then download; fi
        [ "$(held)" = "$FEATURE_KEY" ] ||
            stop "no features of key ${FEATURE_KEY:0:12}… in the cache or at STORE_URL, and no media here to make them; see docs/ci.md"
        report="restored: $(mer verify "$STORE")"
    else
        if [ ! -e "$STORE" ] && [ -n "$STORE_URL" ]; then download; fi
        mkdir -p "$(dirname "$STORE")"
        # --force: what a cache restored by a prefix of its key holds may be of another recipe
        report=$(mer extract "${feature_options[@]}" --out "$STORE" --force --json)
        extracted=$(field extracted <<<"$report")
        report="$extracted utterances extracted, $(field reused <<<"$report") reused, $(field failed <<<"$report") failed"
    fi
    output extracted "$extracted"
    block "Features" "$report"
    echo "$report"
}

licence() { # says whose features are about to be published; run it before a cache or artifact is saved
    python - "$(mer inspect --json "$STORE" | field dataset)" <<'PYTHON'
import sys

from mer.pipeline.datasets import corpora

name = sys.argv[1]
if name not in corpora.names():
    print(f"::warning title=licence::{name} is not a corpus that mer knows: make sure that its features may be passed on")
elif corpora.corpus(name).restricted:
    print(f"::warning title=licence::features of {name} are about to be published. {corpora.corpus(name).licence}. "
          "Caches and artifacts of a public repository can be read by others")
PYTHON
}

train() {
    local table
    table=$(mer train --features "$STORE" "${train_options[@]}" --out "$RUN")
    block "This run" "$table"
    echo "$table"
}

compare() { # fails when this run is worse than the baseline beyond the interval
    local table code=0
    if [ ! -e "$BASELINE/run.json" ]; then
        table="no run of the main branch to compare with yet"
    else
        table=$(mer compare "$BASELINE" "$RUN" --fail-if worse 2>&1) || code=$?
    fi
    block "Against main" "$table"
    echo "$table"
    return "$code"
}

mapfile -t feature_options < <(words "$FEATURE_OPTIONS")
mapfile -t train_options < <(words "$TRAIN_OPTIONS")
case "${1:-}" in
    key | features | licence | train | compare) "$1" ;;
    *) echo "usage: .ci/features.sh key|features|licence|train|compare" >&2; exit 2 ;;
esac
