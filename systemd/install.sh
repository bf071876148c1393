#!/bin/sh
# Make this machine an Edgeward device: user, program, settings, service.
# `sh install.sh --help` lists the options. docs/install.md does the same by hand.
set -eu
# What is installed must be readable for the agent's user, whatever the mask of this shell is.
umask 022

here=$(cd "$(dirname "$0")" && pwd)
extras=onnx,tflite,cli
wheel=
device_id=
broker=
key=
root=
action=install
dry_run=
changed=

usage() {
    cat <<'HELP'
Usage: sudo sh install.sh [options]

Makes this machine an Edgeward device and starts the agent. Every step says what it does; run it
again to update, or after changing an option: what is already as it should be is left alone.

  --wheel FILE        the program to install (default: the wheel beside this script, else the
                      source tree that this script is part of)
  --extras LIST       what to install with it (default: onnx,tflite,cli; an empty LIST: none)
  --device-id NAME    this device's name, for a new settings file (default: the host's name)
  --broker URL        the broker to connect to, for a new settings file
  --key FILE          the public key of whoever signs packs (`edgeward keygen` makes it): goes to
                      /etc/edgeward/release.pub; a new settings file has all else refused
  --python PATH       the interpreter (default: the first Python 3.10 or newer on the PATH)
  --prefix DIR        put everything below DIR; makes no user and starts nothing
  --dry-run           only say what would be done
  --uninstall         stop the agent and remove program and service; keeps settings and state
  --purge             the same, and remove settings, state and user too
HELP
}

say() { printf '%s\n' "$*"; }
fail() {
    printf 'install.sh: %s\n' "$*" >&2
    exit 1
}
step() { printf '\n%s\n' "$*"; }
run() {
    printf '  + %s\n' "$*"
    [ -n "$dry_run" ] || "$@"
}

while [ $# -gt 0 ]; do
    case $1 in
        --wheel | --extras | --device-id | --broker | --key | --python | --prefix)
            [ $# -ge 2 ] || fail "$1 needs a value"
            ;;
    esac
    case $1 in
        --wheel) wheel=$2 ;;
        --extras) extras=$2 ;;
        --device-id) device_id=$2 ;;
        --broker) broker=$2 ;;
        --key) key=$2 ;;
        --python) PYTHON=$2 ;;
        --prefix) root=$2 ;;
        --dry-run) dry_run=yes ;;
        --uninstall) action=uninstall ;;
        --purge) action=purge ;;
        --help | -h) usage; exit 0 ;;
        *) fail "unknown option $1; see --help" ;;
    esac
    case $1 in
        --wheel | --extras | --device-id | --broker | --key | --python | --prefix) shift 2 ;;
        *) shift ;;
    esac
done

# Beside this script in the bundle for devices, one folder away in the source tree.
companion() {
    for folder in "$here" "$here/../requirements"; do
        if [ -f "$folder/$1" ]; then
            echo "$folder/$1"
            return
        fi
    done
}
[ -n "$(companion python.sh)" ] || fail "python.sh is missing beside $here/install.sh"
# shellcheck source=requirements/python.sh
. "$(companion python.sh)"

program=$root/opt/edgeward
settings=$root/etc/edgeward
state=$root/var/lib/edgeward
units=$root/etc/systemd/system
command=$root/usr/local/bin/edgeward

# ---- what both directions need ----

on_this_machine() { [ -z "$root" ]; }
systemd_runs() { on_this_machine && [ -d /run/systemd/system ]; }

check_options() {
    case $device_id in
        *[!A-Za-z0-9_:.-]*) fail "--device-id takes letters, digits and _ : . -, not '$device_id'" ;;
    esac
    case $broker in
        "" | mqtt://?* | mqtts://?* | ws://?* | wss://?*) ;;
        *) fail "--broker takes mqtt://HOST[:PORT] or mqtts://, ws://, wss://, not '$broker'" ;;
    esac
    case $broker$extras in
        *[!]A-Za-z0-9_:.,/@%[-]*) fail "--broker and --extras take no such characters: $broker $extras" ;;
    esac
    [ -z "$wheel" ] || [ -f "$wheel" ] || fail "no file $wheel"
    [ -z "$key" ] || [ -f "$key" ] || fail "no file $key"
    if [ -n "$key" ] && ! grep -q '^-----BEGIN PUBLIC KEY-----' "$key"; then
        fail "$key holds no public key; --key takes the file that ends in .pub, never the private one"
    fi
}

check_rights() {
    [ "$(uname -s)" = Linux ] || fail "the agent runs on Linux only"
    [ -n "$dry_run" ] || [ -w "${root:-/}" ] ||
        fail "no right to write to ${root:-/}; run it with sudo"
}

made_by_hand() { [ -e "$program" ] && [ ! -L "$program" ]; }

remove() {
    for path; do
        { [ ! -e "$path" ] && [ ! -L "$path" ]; } || run rm -rf "$path"
    done
}

# ---- installing ----

make_user() {
    step "1. User 'edgeward': the agent runs as it, never as root."
    install_file "$here/edgeward.sysusers" "$root/etc/sysusers.d/edgeward.conf"
    if ! on_this_machine; then
        say "  The system that starts from $root makes the user at its first start."
    elif getent passwd edgeward >/dev/null; then
        say "  Already there."
    elif command -v systemd-sysusers >/dev/null; then
        run systemd-sysusers /etc/sysusers.d/edgeward.conf
    else
        run useradd --system --user-group --no-create-home --home-dir /var/lib/edgeward \
            --shell /usr/sbin/nologin --comment "Edgeward agent" edgeward
    fi
    if on_this_machine; then
        run install -d -m 0700 -o edgeward -g edgeward "$state"
    else
        run install -d -m 0700 "$state"
    fi
}

write_settings() {
    step "2. Settings: $settings/agent.toml, yours from now on; this script never changes it again."
    # Secrets for the service are read by systemd, as root, and handed over in memory.
    run install -d -m 0755 "$settings"
    run install -d -m 0700 "$settings/secrets"
    [ -z "$key" ] || install_file "$key" "$settings/release.pub"
    if [ -e "$settings/agent.toml" ]; then
        say "  Already there."
        if [ -n "$key" ] && ! grep -q '^[^#]*release\.pub' "$settings/agent.toml"; then
            say '  It does not name the key yet. Put into its [trust]:'
            say '    keys = ["release.pub"]'
            say '    unsigned = "refuse"'
        fi
        return
    fi
    say "  + write $settings/agent.toml"
    [ -n "$key" ] || say "  Without --key this device takes packs that nobody has signed; see docs/trust.md."
    [ -z "$dry_run" ] || return 0
    sed -e "${device_id:+s|^#device_id = .*|device_id = \"$device_id\"|}" \
        -e "${broker:+s|^url = .*|url = \"$broker\"|}" \
        -e "${key:+s/^#keys = /keys = /; s/^#unsigned = /unsigned = /}" \
        "$here/agent.toml" >"$settings/agent.toml.new"
    chmod 0644 "$settings/agent.toml.new"
    mv "$settings/agent.toml.new" "$settings/agent.toml"
}

# Sets `source`: the wheel, or a copy of the source tree, since building leaves files behind.
find_source() {
    source=$wheel
    for candidate in "$here"/edgeward-*.whl; do
        [ -n "$source" ] || [ ! -f "$candidate" ] || source=$candidate
    done
    [ -z "$source" ] || return 0
    tree=$here/..
    [ -f "$tree/pyproject.toml" ] || fail "no wheel beside this script; name one with --wheel FILE"
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    source=$work/edgeward
    mkdir "$source"
    for part in agent device_profiles pyproject.toml README.md LICENSE; do
        [ ! -e "$tree/$part" ] || cp -R "$tree/$part" "$source/"
    done
    find "$source" -name __pycache__ -prune -exec rm -rf {} +
}

# The same inputs give the same word, so that a second run has nothing to do.
fingerprint() {
    {
        (cd "$(dirname "$source")" && find "$(basename "$source")" -type f -exec sha256sum {} +) | sort
        [ -z "$constraints" ] || sha256sum <"$constraints"
        "$python" -c 'import sys; print(sys.version, sys.base_prefix)'
        say "$extras"
    } | sha256sum | cut -c 1-12
}

install_program() {
    step "3. Program: a virtual environment of its own; the system's Python is not touched."
    choose_python
    find_source
    constraints=$(companion constraints.txt)
    target=$program-$(fingerprint)
    if [ -f "$target/.complete" ]; then
        say "  $target is already there."
    else
        fill "$target"
    fi
    switch_to "$target"
}

# The system's own interpreter comes first: the service cannot see one in somebody's home.
choose_python() {
    if [ -z "${PYTHON:-}" ] && is_recent /usr/bin/python3; then
        PYTHON=/usr/bin/python3
    fi
    python=$(find_python)
    if [ -n "$dry_run" ]; then
        can_make_venv "$python" || say "  + apt-get install $(venv_package "$python")"
    else
        need_venv "$python"
    fi
}

fill() {
    say "  Into $1; what runs now is not touched until the new one is whole."
    run rm -rf "$1"
    run mkdir -p "$(dirname "$1")"
    run "$python" -m venv "$1"
    run "$1/bin/python" -m pip install --quiet --disable-pip-version-check --no-input \
        ${constraints:+--constraint "$constraints"} "$source${extras:+[$extras]}" ||
        give_up "pip could not install the program"
    # As the service's user: an interpreter or a file that it cannot read shows here.
    if on_this_machine; then
        run runuser -u edgeward -- "$1/bin/edgeward" run --check --config "$settings/agent.toml"
    else
        run env EDGEWARD_STATE_DIR="$state" "$1/bin/edgeward" run --check \
            --config "$settings/agent.toml"
    fi || give_up "the new program would not start"
    run touch "$1/.complete"
}

give_up() {
    rm -rf "$target"
    fail "$1; what was installed before is untouched"
}

# The link is replaced in one step: at any moment there is a whole program to start.
switch_to() {
    name=$(basename "$1")
    previous=$(readlink "$program" || true)
    if [ "$previous" != "$name" ]; then
        changed=yes
        run ln -sfn "$name" "$program.new"
        run mv -T "$program.new" "$program"
        for old in "$program"-*; do
            case $(basename "$old") in
                "$name" | "$previous") ;; # one step back stays possible
                *) remove "$old" ;;
            esac
        done
    fi
    if [ "$(readlink "$command" || true)" != /opt/edgeward/bin/edgeward ]; then
        run mkdir -p "$(dirname "$command")"
        run ln -sfn /opt/edgeward/bin/edgeward "$command"
    fi
}

install_file() {
    if cmp -s "$1" "$2"; then
        say "  $2 is as it should be."
        return
    fi
    changed=yes
    run install -D -m 0644 "$1" "$2"
}

install_service() {
    step "4. Service: systemd starts the agent at boot, watches it and starts it again."
    install_file "$here/edgeward.service" "$units/edgeward.service"
    if command -v systemctl >/dev/null; then
        run systemctl --quiet ${root:+--root "$root"} enable edgeward.service
    fi
    if ! systemd_runs; then
        say "  No systemd runs here, so nothing is started. It will be at the next boot with systemd;"
        say "  without it: /opt/edgeward/bin/edgeward run --config /etc/edgeward/agent.toml"
        return
    fi
    run systemctl daemon-reload
    if [ -n "$changed" ] || ! systemctl --quiet is-active edgeward.service; then
        run systemctl restart edgeward.service
    else
        say "  It is running, and nothing has changed."
    fi
}

install_all() {
    check_rights
    ! made_by_hand || fail "$program is there, but this script did not make it; move it away first"
    make_user
    write_settings
    install_program
    install_service
    step "Done."
    say "  Settings:  $settings/agent.toml   (after a change: systemctl restart edgeward)"
    say "  State:     sudo edgeward status"
    say "  Messages:  journalctl -u edgeward"
}

# ---- removing ----

uninstall() {
    step "1. Service: stop it, and forget it."
    if systemd_runs && [ -f "$units/edgeward.service" ]; then
        run systemctl disable --now edgeward.service
    fi
    remove "$units/edgeward.service" "$units/multi-user.target.wants/edgeward.service"
    ! systemd_runs || run systemctl daemon-reload
    step "2. Program."
    if made_by_hand; then
        say "  $program was not made by this script: it stays."
    else
        remove "$program" "$program.new" "$program"-*
    fi
    [ "$(readlink "$command" || true)" != /opt/edgeward/bin/edgeward ] || remove "$command"
}

purge() {
    step "3. Settings, state and user."
    remove "$settings" "$state" "$units/edgeward.service.d" "$root/etc/sysusers.d/edgeward.conf"
    if on_this_machine && getent passwd edgeward >/dev/null; then
        run userdel edgeward
    fi
}

check_options
case $action in
    install) install_all ;;
    uninstall)
        check_rights
        uninstall
        step "Done. Kept: $settings, $state and the user edgeward; --purge removes them too."
        ;;
    purge)
        check_rights
        uninstall
        purge
        step "Done. Nothing of Edgeward is left but packages that the system may use otherwise."
        ;;
esac
