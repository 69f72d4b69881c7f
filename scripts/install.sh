#!/bin/sh
# Installs atoll on this machine, or upgrades it in place.
#
# Usage: curl -sfL https://HUB/install.sh | INSTALL_ATOLL_URL=https://HUB sh -
#   curl -sfL https://HUB/install.sh | ATOLL_URL=https://SERVER:6443 ATOLL_TOKEN=... sh -       (workloads only)
#   curl -sfL https://HUB/install.sh | sh -s - server --tls-san shop.example                    (with flags)
#
# Run it again to upgrade: settings of the first time stay, unless they are given anew. Given empty, they are forgotten.
# Nothing is replaced before the new program is downloaded, verified and has told its version.
#
#   ATOLL_*, CONTAINERD_*, *_proxy        saved for the service, readable by root alone; ATOLL_URL makes this node an agent
#   INSTALL_ATOLL_URL                     folder (http, https) that holds atoll-linux-ARCH and sha256sum-ARCH.txt
#   INSTALL_ATOLL_VERSION                 subfolder of that folder; not kept
#   INSTALL_ATOLL_LOCAL_FILE              install this file, download nothing; checked if sha256sum-ARCH.txt lies beside it
#   INSTALL_ATOLL_SKIP_DOWNLOAD=true      use the program that is in INSTALL_ATOLL_BIN_DIR already
#   INSTALL_ATOLL_EXEC                    command and flags of the service, as do the arguments of this script
#   INSTALL_ATOLL_SKIP_START=true         do not start the service     INSTALL_ATOLL_SKIP_ENABLE=true  neither enable nor start it
#   INSTALL_ATOLL_FORCE_RESTART=true      restart the service though nothing changed
#   INSTALL_ATOLL_BIN_DIR                 /usr/local/bin               INSTALL_ATOLL_SYSTEMD_DIR       /etc/systemd/system
#   INSTALL_ATOLL_NAME                    service atoll-NAME           INSTALL_ATOLL_TYPE              systemd type (notify; agent: exec)
#   INSTALL_ATOLL_SYMLINK                 kubectl and ctr: skip, force, or (default) only where no such command exists
#   INSTALL_ATOLL_WAIT                    seconds to wait for the service (120)
#   INSTALL_ATOLL_ROOT                    install below this folder, for images: enabled there, not started
set -eu
PATH=$PATH:/usr/sbin:/sbin

default_url=""   # whoever serves this script may fill this in
known="URL VERSION LOCAL_FILE SKIP_DOWNLOAD EXEC SKIP_START SKIP_ENABLE FORCE_RESTART BIN_DIR SYSTEMD_DIR NAME TYPE SYMLINK WAIT ROOT"
newline='
'

say()   { printf '[atoll] %s\n' "$*" >&2; }
# fatal CAUSE REMEDY
fatal() { printf 'Error: %s\nTry:   %s\n' "$1" "$2" >&2; exit 1; }
yes()   { case ${1:-} in true | yes | 1) true ;; *) false ;; esac; }
have()  { command -v "$1" >/dev/null 2>&1; }

# quote prints its argument for a shell to read.
quote() { printf "'%s'" "$(printf '%s' "$1" | sed "s/'/'\\\\''/g")"; }

# why_io MESSAGE turns a write error into a remedy.
why_io() {
    case $1 in
    *[Rr]ead-only*) echo "the file system is read-only: make it writable, or choose another folder with INSTALL_ATOLL_BIN_DIR or INSTALL_ATOLL_SYSTEMD_DIR" ;;
    *[Nn]o\ space*) echo "the disk is full: free some space (the program needs about 300 MiB while it is installed), then run this again" ;;
    *) echo "make the folder writable for root, then run this again" ;;
    esac
}

# write_file PATH MODE replaces PATH by stdin at once, if that changes anything.
write_file() {
    wf_tmp=$(dirname "$1")/.$(basename "$1").new
    wf_err=$( (umask 077 && cat >"$wf_tmp" && chmod "$2" "$wf_tmp") 2>&1) || {
        rm -f "$wf_tmp"
        fatal "write $1: $wf_err" "$(why_io "$wf_err")"
    }
    if [ -f "$1" ] && [ "$(cat "$1" && echo .)" = "$(cat "$wf_tmp" && echo .)" ]; then
        chmod "$2" "$1"
        rm -f "$wf_tmp"
        return 0
    fi
    mark_pending
    mv -f "$wf_tmp" "$1"
}

# mark_pending notes that the running service is older than what is installed; a cut of power does not lose the note.
mark_pending() {
    [ -e "$pending" ] || : >"$pending"
}

# ---------------------------------------------------------------------------------------------------------- settings

check_variables() {
    for cv_name in $(env | sed -n 's/^INSTALL_ATOLL_\([A-Za-z0-9_]*\)=.*/\1/p'); do
        case " $known " in
        *" $cv_name "*) ;;
        *) fatal "unknown variable INSTALL_ATOLL_$cv_name" "use one of: $known (each with INSTALL_ATOLL_ before it)" ;;
        esac
    done
}

# read_settings ARGS...: those given now win over those saved by the run before.
read_settings() {
    root=${INSTALL_ATOLL_ROOT:-}
    root=${root%/}
    etc=$root/etc/atoll
    conf=$etc/install.conf
    pending=$etc/install.pending
    saved_args="" saved_role="" saved_name="" saved_type="" saved_bin_dir="" saved_systemd_dir="" saved_symlink="" saved_url=""
    saved_skip_enable="" saved_service="" saved_env_file="" saved_source_sha="" saved_binary_sha=""
    if [ -r "$conf" ]; then
        # shellcheck source=/dev/null
        . "$conf"
        say "found an earlier installation; its settings stay unless given anew"
    fi
    url=${INSTALL_ATOLL_URL:-${saved_url:-$default_url}}
    bin_dir=${INSTALL_ATOLL_BIN_DIR:-${saved_bin_dir:-/usr/local/bin}}
    systemd_dir=${INSTALL_ATOLL_SYSTEMD_DIR:-${saved_systemd_dir:-/etc/systemd/system}}
    symlink=${INSTALL_ATOLL_SYMLINK-$saved_symlink}
    name=${INSTALL_ATOLL_NAME-$saved_name}
    type=${INSTALL_ATOLL_TYPE-$saved_type}
    skip_enable=${INSTALL_ATOLL_SKIP_ENABLE-$saved_skip_enable}
    case $name in *[!A-Za-z0-9_.-]*) fatal "INSTALL_ATOLL_NAME is '$name'" "use letters, digits, dot, dash and underscore only" ;; esac
    read_args "$@"
    read_role
    service=atoll
    [ "$role" = server ] || service=atoll-agent
    [ -z "$name" ] || service=atoll-$name
    # A server tells when it is ready. An agent may wait for its server for hours, which is no failure to start.
    if [ -z "$type" ] && [ "$role" = server ]; then type=notify; fi
    type=${type:-exec}
}

# read_args ARGS...: sets args, one per line. A token is taken out: the command line of a process is public.
read_args() {
    args_given=no
    args=$saved_args
    if [ $# -gt 0 ] || [ -n "${INSTALL_ATOLL_EXEC+given}" ]; then
        args_given=yes
        args=$(printf '%s\n' "${INSTALL_ATOLL_EXEC:-}" | xargs -n1 printf '%s\n' 2>/dev/null) ||
            fatal "INSTALL_ATOLL_EXEC has an open quote: $INSTALL_ATOLL_EXEC" "close it"
        for ra_arg in "$@"; do
            case $ra_arg in *"$newline"*) fatal "an argument contains a line break" "put this setting into /etc/atoll/config.yaml" ;; esac
            args=$args${args:+$newline}$ra_arg
        done
    fi
    ra_kept="" ra_next=""
    while IFS= read -r ra_arg; do
        case $ra_next$ra_arg in
        value:*) ATOLL_TOKEN=$ra_arg ra_next="" ;;
        --token=*) ATOLL_TOKEN=${ra_arg#--token=} ;;
        -t=*) ATOLL_TOKEN=${ra_arg#-t=} ;;
        --token | -t) ra_next=value: ;;
        *) ra_kept=$ra_kept${ra_kept:+$newline}$ra_arg ;;
        esac
    done <<EOF
$args
EOF
    args=$ra_kept
    if [ -n "${ATOLL_TOKEN:-}" ]; then export ATOLL_TOKEN; fi
}

# read_role settles whether this node is a server or an agent, and puts the command in front of the flags.
read_role() {
    rr_first=${args%%"$newline"*}
    case $rr_first in
    server | agent)
        role=$rr_first
        if [ "$args_given" = no ] && [ "$role" = server ] && [ -n "${ATOLL_URL:-}" ] && [ -z "$(old_env ATOLL_URL)" ]; then
            fatal "this node is a server, and ATOLL_URL would make it an agent" \
                "run $bin_dir/atoll-uninstall.sh first, or say INSTALL_ATOLL_EXEC=server to keep it a server that joins another"
        fi
        ;;
    "" | -*)
        role=server
        if [ -n "$saved_role" ]; then
            role=$saved_role
        elif [ -n "${ATOLL_URL:-}" ]; then
            role=agent
        fi
        args=$role${args:+$newline$args}
        ;;
    *) fatal "'$rr_first' is not something to run as a service" "begin with server or agent, or with a flag" ;;
    esac
}

# old_env NAME prints the line of the saved environment that sets NAME.
old_env() {
    [ -z "$saved_env_file" ] || [ ! -r "$root$saved_env_file" ] || sed -n "/^$1=/p" "$root$saved_env_file"
}

# environment prints the service's environment: the earlier one, changed by what is set now.
environment() {
    if [ -n "$saved_env_file" ] && [ -r "$root$saved_env_file" ]; then
        while IFS= read -r en_line; do
            en_name=${en_line%%=*}
            case $en_name in
            "" | *[!A-Za-z0-9_]* | [0-9]*) printf '%s\n' "$en_line" ;;
            *) is_saved "$en_name" && eval "[ -n \"\${$en_name+set}\" ]" || printf '%s\n' "$en_line" ;;
            esac
        done <"$root$saved_env_file"
    fi
    for en_name in $(env | sed -n 's/^\([A-Za-z_][A-Za-z0-9_]*\)=.*/\1/p' | sort -u); do
        is_saved "$en_name" || continue
        en_value=""
        eval "en_value=\${$en_name:-}"
        case $en_value in
        "") ;;
        *"$newline"*) fatal "the variable $en_name contains a line break" "put this setting into /etc/atoll/config.yaml" ;;
        *) printf '%s="%s"\n' "$en_name" "$(printf '%s' "$en_value" | sed 's/[\\"$`]/\\&/g')" ;;
        esac
    done
}

is_saved() {
    case $1 in
    ATOLL_?* | CONTAINERD_?* | http_proxy | https_proxy | no_proxy | all_proxy | HTTP_PROXY | HTTPS_PROXY | NO_PROXY | ALL_PROXY) true ;;
    *) false ;;
    esac
}

# check_environment sets env_text, and sees to it that an agent can join.
check_environment() {
    env_text=$(environment) || exit 1
    case $role:$env_text$newline$args$(cat "$etc/config.yaml" "$etc"/config.yaml.d/*.yaml 2>/dev/null) in
    server:* | *ATOLL_TOKEN* | *token*) ;;
    *) fatal "an agent needs the token of its server" "set ATOLL_TOKEN (on a server: atoll token) and run this again" ;;
    esac
}

save_settings() {
    {
        echo "# Written by the installer of atoll: what it did last, so that the next run keeps it."
        for ss_name in args role name bin_dir systemd_dir symlink url skip_enable service env_file source_sha binary_sha; do
            eval "ss_value=\$$ss_name"
            # shellcheck disable=SC2154 # set by the eval above
            printf 'saved_%s=%s\n' "$ss_name" "$(quote "$ss_value")"
        done
        printf 'saved_type=%s\n' "$(quote "${INSTALL_ATOLL_TYPE-$saved_type}")"
    } | write_file "$conf" 0600
}

# ----------------------------------------------------------------------------------------------------------- machine

check_machine() {
    case $(uname -s) in Linux) ;; *) fatal "atoll runs on Linux, this is $(uname -s)" "install it on a Linux machine" ;; esac
    case $(uname -m) in
    x86_64 | amd64) arch=amd64 elf=3e00 ;;
    aarch64 | arm64) arch=arm64 elf=b700 ;;
    *) fatal "this machine's processor is $(uname -m)" "use a 64-bit machine: x86_64 (amd64) or aarch64 (arm64)" ;;
    esac
    find_init
    for cm_tool in sed awk mktemp xargs od df; do
        have "$cm_tool" || fatal "the command $cm_tool is missing" "install it (Debian: coreutils, findutils, mawk; Alpine: busybox)"
    done
    check_folder "$etc"
    env_file=/etc/atoll/$service.env
    if [ "$init" = systemd ]; then
        env_file=$systemd_dir/$service.service.env
        check_folder "$root$systemd_dir"
    elif [ "$init" = openrc ]; then
        check_folder "$root/etc/init.d"
    fi
    if [ -z "${INSTALL_ATOLL_BIN_DIR:-}$saved_bin_dir" ] && [ -d "$root/opt/bin" ] && ! (probe "$root$bin_dir") >/dev/null 2>&1; then
        bin_dir=/opt/bin   # the habit of systems with a read-only /usr
    fi
    check_folder "$root$bin_dir"
    check_space "$root$bin_dir" 300
}

find_init() {
    if [ -d /run/systemd/system ] || { [ -n "$root" ] && have systemctl; }; then
        init=systemd
    elif have openrc-run || [ -x "$root/sbin/openrc-run" ]; then
        init=openrc
    elif yes "$skip_enable"; then
        init=none
    else
        fatal "neither systemd nor OpenRC runs this machine" \
            "set INSTALL_ATOLL_SKIP_ENABLE=true to install the program alone, and let your own init system run '$bin_dir/atoll $role'"
    fi
}

probe() { mkdir -p "$1" && : >"$1/.atoll-probe" && rm -f "$1/.atoll-probe"; }

check_folder() {
    cf_err=$( (probe "$1") 2>&1) || fatal "cannot write to $1: $cf_err" "$(why_io "$cf_err")"
}

# check_space FOLDER MIB
check_space() {
    cs_free=$(df -Pk "$1" 2>/dev/null | awk 'NR == 2 { print int($4 / 1024) }')
    [ -z "$cs_free" ] || [ "$cs_free" -ge "$2" ] ||
        fatal "$1 has $cs_free MiB free, $2 are needed" "free some space there, or choose another folder with INSTALL_ATOLL_BIN_DIR"
}

# take_lock keeps a second installation out; the kernel lets go of it when this one ends, however it ends.
take_lock() {
    exec 9>"$etc/install.lock"
    ! have flock || flock -n 9 || fatal "another installation of atoll is running" "wait until it has ended"
}

# ---------------------------------------------------------------------------------------------------------- download

sha256() {
    if have sha256sum; then
        sha256sum "$1" | cut -d' ' -f1
    elif have busybox && busybox sha256sum "$1" >/dev/null 2>&1; then
        busybox sha256sum "$1" | cut -d' ' -f1
    else
        openssl dgst -sha256 -r "$1" | cut -d' ' -f1
    fi
}

# fetch_once URL FILE continues a partial FILE. Sets fetch_err; returns 2 when trying again is useless, 3 when FILE cannot be written.
fetch_once() {
    fo_rc=0
    if have curl; then
        fetch_err=$(curl -sSfL --connect-timeout 20 --speed-limit 500 --speed-time 60 -C - -w '\nstatus=%{http_code}\n' -o "$2" "$1" 2>&1) || fo_rc=$?
        fo_status=$(printf '%s\n' "$fetch_err" | sed -n 's/^status=//p')
        fetch_err=$(printf '%s\n' "$fetch_err" | sed '/^status=/d; /^$/d' | tail -n 1)
        case $fo_rc:$fo_status in
        0:* | 22:416) return 0 ;;   # 416: it was complete already
        22:4*) return 2 ;;
        23:*) return 3 ;;
        33:* | 36:*) rm -f "$2" ;;  # the server cannot continue a file
        esac
        return 1
    fi
    # GNU wget would try 20 times by itself; some builds of BusyBox crash when a timeout is set, or lack the flags.
    fetch_err=$(wget -q -T 60 -t 1 -c -O "$2" "$1" 2>&1) || fo_rc=$?
    case $fo_rc:$fetch_err in
    1[2-9][0-9]:* | *[Uu]sage:*)
        fo_rc=0
        fetch_err=$(wget -q -c -O "$2" "$1" 2>&1) || fo_rc=$?
        ;;
    esac
    fetch_err=$(printf '%s\n' "$fetch_err" | tail -n 1)
    case $fo_rc:$fetch_err in
    0:*) return 0 ;;
    8:*) fetch_err=${fetch_err:-the server answered with an error} && return 2 ;;
    *" 40"[0-9]*) return 2 ;;
    3:* | *[Nn]o\ space*) return 3 ;;
    esac
    return 1
}

# fetch URL FILE
fetch() {
    fe_pause=1
    while :; do
        fe_rc=0
        fetch_once "$1" "$2" || fe_rc=$?
        case $fe_rc:$fe_pause in
        0:*) return 0 ;;
        3:*) fatal "download $1: ${fetch_err:-cannot write it}" "$(why_io "No space")" ;;
        2:* | *:8) break ;;
        esac
        say "download interrupted, trying again in $fe_pause s"
        sleep $fe_pause
        fe_pause=$((fe_pause * 2))
        [ $fe_pause -lt 8 ] || rm -f "$2"   # the last try begins afresh
    done
    fatal "download $1: ${fetch_err:-refused, or ended early}" \
        "check INSTALL_ATOLL_URL and this machine's way there (http_proxy, https_proxy), then run this again; or bring the file here and set INSTALL_ATOLL_LOCAL_FILE"
}

# wanted_sum FILE prints the checksum that FILE, in the format of sha256sum, gives for this architecture.
wanted_sum() {
    awk -v want="atoll-linux-$arch" '{ f = $2; sub(/^\*/, "", f); sub(/.*\//, "", f) } f == want && length($1) == 64 { print tolower($1); exit }' "$1"
}

# obtain_binary leaves the new program in $work/atoll, or nothing there when the installed one is the same.
obtain_binary() {
    source_sha=$saved_source_sha binary_sha=$saved_binary_sha
    if [ -n "${INSTALL_ATOLL_LOCAL_FILE:-}" ]; then
        [ -f "$INSTALL_ATOLL_LOCAL_FILE" ] || fatal "INSTALL_ATOLL_LOCAL_FILE: there is no file $INSTALL_ATOLL_LOCAL_FILE" "name the downloaded file by its full path"
        ob_err=$(cp "$INSTALL_ATOLL_LOCAL_FILE" "$work/download" 2>&1) || fatal "copy $INSTALL_ATOLL_LOCAL_FILE: $ob_err" "$(why_io "$ob_err")"
        ob_from=$INSTALL_ATOLL_LOCAL_FILE ob_want=""
        ob_sums=$(dirname "$ob_from")/sha256sum-$arch.txt
        [ ! -f "$ob_sums" ] || ob_want=$(wanted_sum "$ob_sums")
    elif case ${INSTALL_ATOLL_SKIP_DOWNLOAD:-} in true | yes | 1 | binary) true ;; *) false ;; esac then
        [ -x "$root$bin_dir/atoll" ] || fatal "INSTALL_ATOLL_SKIP_DOWNLOAD is set, but there is no program $bin_dir/atoll" "put it there, or set INSTALL_ATOLL_LOCAL_FILE"
        return 0
    else
        download || return 0
    fi
    ob_got=$(sha256 "$work/download")
    [ -z "$ob_want" ] || [ "$ob_got" = "$ob_want" ] || fatal "$ob_from has the checksum $ob_got, expected $ob_want; nothing was changed" \
        "run this again; if it stays so, the file was damaged or replaced on its way: do not install it"
    # shellcheck disable=SC2034 # save_settings reads it by name
    source_sha=$ob_got
    unpack
}

# download sets ob_from and ob_want and leaves $work/download. Returns 1 when the installed program came from the same file.
download() {
    case $url in
    http://?* | https://?*) ;;
    "") fatal "INSTALL_ATOLL_URL is not set" "set it to the address that holds atoll-linux-$arch, for example https://hub.example; or set INSTALL_ATOLL_LOCAL_FILE" ;;
    *) fatal "INSTALL_ATOLL_URL is '$url'" "begin it with https:// or http://" ;;
    esac
    have curl || have wget || fatal "neither curl nor wget is installed" "install one of them, or set INSTALL_ATOLL_LOCAL_FILE"
    do_base=${url%/}
    [ -z "${INSTALL_ATOLL_VERSION:-}" ] || do_base=$do_base/$(printf '%s' "$INSTALL_ATOLL_VERSION" | sed 's/+/%2B/g')
    ob_from=$do_base/atoll-linux-$arch
    fetch "$do_base/sha256sum-$arch.txt" "$work/sums"
    ob_want=$(wanted_sum "$work/sums")
    [ -n "$ob_want" ] || fatal "$do_base/sha256sum-$arch.txt names no checksum of atoll-linux-$arch" \
        "check INSTALL_ATOLL_URL; a login page of the network may have answered in its place"
    if [ "$ob_want" = "$saved_source_sha" ] && [ -x "$root$bin_dir/atoll" ] && [ "$(sha256 "$root$bin_dir/atoll")" = "$saved_binary_sha" ]; then
        say "the program is up to date"
        return 1
    fi
    say "downloading $ob_from"
    fetch "$ob_from" "$work/download"
}

# cause_of TEXT and remedy_of TEXT DEFAULT read what a program of ours said: "Error: ..." and "Try:   ...".
cause_of() {
    co_line=$(printf '%s\n' "$1" | sed -n 's/^Error: *//p' | head -n 1)
    printf '%s' "${co_line:-$(printf '%s\n' "$1" | tail -n 1)}"
}

remedy_of() {
    ro_line=$(printf '%s\n' "$1" | sed -n 's/^Try: *//p' | head -n 1)
    printf '%s' "${ro_line:-$2}"
}

# unpack turns the downloaded form into the program. A file that is the program already refuses the flag (exit code 2).
unpack() {
    [ "$(od -An -tx1 -N4 "$work/download" | tr -d ' \n')" = 7f454c46 ] || fatal "$ob_from is not a program" "check where it comes from"
    [ "$(od -An -tx1 -j18 -N2 "$work/download" | tr -d ' \n')" = $elf ] || fatal "$ob_from is made for another processor" "use the file for $arch"
    chmod 0755 "$work/download"
    up_rc=0
    up_out=$("$work/download" --unpack-to "$work/atoll" 2>&1) || up_rc=$?
    case $up_rc in
    0) [ -s "$work/atoll" ] || fatal "unpacking $ob_from left nothing" "check where it comes from" ;;
    2) mv "$work/download" "$work/atoll" ;;
    126) fatal "cannot run a program in $bin_dir: $up_out" "is it mounted noexec? choose another folder with INSTALL_ATOLL_BIN_DIR" ;;
    *)
        case $up_out in *[Nn]o\ space*) fatal "unpack $ob_from: $(cause_of "$up_out")" "$(why_io "$up_out")" ;; esac
        fatal "unpack $ob_from: $(cause_of "$up_out")" "$(remedy_of "$up_out" "get the file afresh from where it was published")"
        ;;
    esac
    chmod 0755 "$work/atoll"
    version=$("$work/atoll" version 2>&1) || fatal "the new program does not run: $(cause_of "$version")" \
        "check that the file is meant for this machine; nothing was changed"
    binary_sha=$(sha256 "$work/atoll")
    rm -f "$work/download"
}

# ----------------------------------------------------------------------------------------------------------- install

install_binary() {
    [ -e "$work/atoll" ] || return 0
    if [ -x "$root$bin_dir/atoll" ] && [ "$(sha256 "$root$bin_dir/atoll")" = "$binary_sha" ]; then
        return 0
    fi
    sync
    mark_pending
    mv -f "$work/atoll" "$root$bin_dir/atoll"
    sync
    if have restorecon; then restorecon "$root$bin_dir/atoll" 2>/dev/null || true; fi
    say "installed $bin_dir/atoll: ${version%%"$newline"*}"
}

install_links() {
    for il_name in kubectl ctr; do
        il_path=$root$bin_dir/$il_name
        case $symlink in
        skip) continue ;;
        force) ;;
        *)
            if [ -e "$il_path" ] || [ -L "$il_path" ] || { [ -z "$root" ] && have $il_name; }; then continue; fi
            ;;
        esac
        [ "$(readlink "$il_path" 2>/dev/null)" = atoll ] || { ln -sf atoll "$il_path" && say "made the link $bin_dir/$il_name"; }
    done
}

# each_arg FUNCTION prints every argument of the service through FUNCTION, each after a space.
each_arg() {
    while IFS= read -r ea_arg; do printf ' %s' "$("$1" "$ea_arg")"; done <<EOF
$args
EOF
}

# unit_quote prints its argument as systemd reads it in ExecStart.
unit_quote() {
    case $1 in
    *[!A-Za-z0-9_=:,./@+-]* | "") printf '"%s"' "$(printf '%s' "$1" | sed 's/[\\"]/\\&/g; s/%/%%/g; s/\$/$$/g')" ;;
    *) printf '%s' "$1" ;;
    esac
}

systemd_unit() {
    cat <<EOF
[Unit]
Description=atoll: Kubernetes node ($role)
Wants=network-online.target
After=network-online.target dbus.service firewalld.service

[Service]
Type=$type
EnvironmentFile=-/etc/default/$service
EnvironmentFile=-/etc/sysconfig/$service
EnvironmentFile=-$env_file
ExecStartPre=-/bin/sh -c 'for m in br_netfilter overlay nf_conntrack vxlan; do modprobe -q \$\$m; done'
ExecStart=$bin_dir/atoll$(each_arg unit_quote)
# Pods run on while the service restarts: only the main process is stopped.
KillMode=process
Delegate=yes
LimitNOFILE=1048576
LimitNPROC=infinity
LimitCORE=infinity
TasksMax=infinity
TimeoutStartSec=0
Restart=always
RestartSec=5s

[Install]
WantedBy=multi-user.target
EOF
}

openrc_script() {
    cat <<EOF
#!/sbin/openrc-run
description="atoll: Kubernetes node ($role)"
supervisor=supervise-daemon
name=$service
command=$(quote "$bin_dir/atoll")
command_args=$(quote "$(each_arg quote)")
output_log=/var/log/$service.log
error_log=/var/log/$service.log
pidfile=/run/$service.pid
respawn_delay=5
respawn_max=0
rc_ulimit="-n 1048576"

depend() {
    after network-online
    want cgroups
}

start_pre() {
    for m in br_netfilter overlay nf_conntrack vxlan; do modprobe -q \$m || true; done
}

set -o allexport
if [ -f /etc/environment ]; then . /etc/environment; fi
if [ -f $env_file ]; then . $env_file; fi
set +o allexport
EOF
}

install_service() {
    # The new file must be complete before the old one goes: it holds what was kept.
    printf '%s\n' "$env_text" | sed '/^$/d' | write_file "$root$env_file" 0600
    if [ "$init" = systemd ]; then
        systemd_unit | write_file "$root$systemd_dir/$service.service" 0644
    elif [ "$init" = openrc ]; then
        openrc_script | write_file "$root/etc/init.d/$service" 0755
        if [ -d "$root/etc/logrotate.d" ]; then
            printf '/var/log/%s.log {\n\tmissingok\n\tnotifempty\n\tcopytruncate\n\trotate 4\n\tsize 10M\n\tcompress\n}\n' "$service" |
                write_file "$root/etc/logrotate.d/$service" 0644
        fi
    fi
    [ -z "$saved_service" ] || [ "$saved_service" = "$service" ] || remove_service "$saved_service"
}

# remove_service NAME takes away the service under which atoll ran before.
remove_service() {
    say "the service $1 becomes $service"
    if [ -z "$root" ] && [ "$init" = systemd ]; then
        systemctl disable --now "$1" >/dev/null 2>&1 || true
    elif [ -z "$root" ]; then
        rc-service "$1" stop >/dev/null 2>&1 9>&- || true
        rc-update del "$1" default >/dev/null 2>&1 || true
    fi
    rm -f "$root$saved_systemd_dir/$1.service" "$root$saved_systemd_dir/$1.service.env" "$root/etc/init.d/$1" "$root/etc/atoll/$1.env" "$root/etc/logrotate.d/$1" \
        "$root$systemd_dir/multi-user.target.wants/$1.service"
}

# ------------------------------------------------------------------------------------------------------------- start

start_service() {
    if yes "$skip_enable"; then
        say "installed; nothing is enabled or started"
        return 0
    fi
    if [ -n "$root" ]; then
        if [ "$init" = systemd ]; then
            systemctl --root="$root" enable "$service"
        else
            mkdir -p "$root/etc/runlevels/default"
            ln -sf "/etc/init.d/$service" "$root/etc/runlevels/default/$service"
        fi
        return 0
    fi
    if [ "$init" = systemd ]; then
        systemctl daemon-reload
        systemctl enable "$service" >/dev/null 2>&1 || fatal "systemctl enable $service did not work" "run it by hand to see why"
    elif [ "$init" = openrc ]; then
        rc-update add "$service" default >/dev/null || fatal "rc-update add $service did not work" "run it by hand to see why"
    fi
    if yes "${INSTALL_ATOLL_SKIP_START:-}"; then
        say "the service $service is enabled, not started"
        return 0
    fi
    if [ ! -e "$pending" ] && ! yes "${INSTALL_ATOLL_FORCE_RESTART:-}" && is_active; then
        say "nothing changed: $service runs on"
        return 0
    fi
    say "starting $service; pods that run already go on running"
    if [ "$init" = systemd ]; then
        systemctl restart --no-block "$service"
    else
        rc-service "$service" restart 9>&- >&2 || fatal "rc-service $service restart did not work" "see /var/log/$service.log"
    fi
    rm -f "$pending"
    wait_active
}

is_active() {
    if [ "$init" = systemd ]; then systemctl is-active --quiet "$service"; else rc-service "$service" status >/dev/null 2>&1 9>&-; fi
}

# wait_active waits for the service, but not for ever: a server may be waiting for its peers.
wait_active() {
    wa_left=${INSTALL_ATOLL_WAIT:-120}
    while ! is_active; do
        if [ "$init" = systemd ]; then
            case $(systemctl show -p SubState "$service") in
            *auto-restart* | *failed*)
                journalctl -u "$service" -n 15 --no-pager -o cat >&2 2>/dev/null || true
                fatal "$service was installed, but does not stay up" \
                    "see journalctl -u $service; settings are in /etc/atoll/config.yaml and $env_file; it is started again every 5 s"
                ;;
            esac
        fi
        if [ "$wa_left" -le 0 ]; then
            say "$service is still starting; look at it with: $bin_dir/atoll status"
            return 0
        fi
        wa_left=$((wa_left - 1))
        sleep 1
    done
    say "$service runs"
    if [ "$role" = server ]; then say "next: $bin_dir/atoll status, $bin_dir/atoll kubectl get nodes"; fi
}

# ------------------------------------------------------------------------------------------ the scripts that undo it

# data_flag prints the data folder that the service's flags name.
data_flag() {
    printf '%s\n' "$args" | awk '
        next_one { d = $0; next_one = 0; next }
        /^(--data-dir|-d)$/ { next_one = 1 }
        /^(--data-dir|-d)=/ { d = $0; sub(/^[^=]*=/, "", d) }
        END { print d }'
}

# facts prints what the two scripts need to know of this installation.
facts() {
    cat <<EOF
#!/bin/sh
# Written by the installer of atoll.
set -u
PATH=\$PATH:/usr/sbin:/sbin
service=$(quote "$service")
init=$init
bin_dir=$(quote "$bin_dir")
data_flag=$(quote "$(data_flag)")

say()   { printf '[atoll] %s\n' "\$*" >&2; }
fatal() { printf 'Error: %s\nTry:   %s\n' "\$1" "\$2" >&2; exit "\${3:-1}"; }

# data_folder prints where the node keeps its state: from the flags, the configuration, or the default.
data_folder() {
    df_dir=\$data_flag
    [ -n "\$df_dir" ] || df_dir=\$(cat /etc/atoll/config.yaml /etc/atoll/config.yaml.d/*.yaml 2>/dev/null | sed -n 's/^data-dir: *//p' | tail -n 1 | tr -d "\"'")
    df_dir=\${df_dir:-/var/lib/atoll}
    printf '%s' "\${df_dir%/}"
}

# mounts_below FOLDER... prints what is mounted strictly below, deepest first, but not what /etc/fstab mounts.
mounts_below() {
    for mb_dir in "\$@"; do
        { [ ! -r /etc/fstab ] || sed 's/^/fstab /' /etc/fstab; sed 's/^/now /' /proc/self/mounts; } |
            awk -v dir="\$mb_dir/" '\$1 == "fstab" { own[\$3] = 1; next } index(\$3, dir) == 1 && !(\$3 in own) { print \$3 }'
    done | sort -ru
}
EOF
}

killall_script() {
    facts
    cat <<'EOF'

# Stops atoll and every pod of this node, and takes away their mounts, network and processes. Data stays.

stop_service() {
    case $init in
    systemd) systemctl stop "$service" 2>/dev/null ;;
    openrc) rc-service "$service" stop >/dev/null 2>&1 ;;
    esac
}

# bundles prints the folder of every container that containerd of this node knows.
bundles() {
    for bu_dir in /run/atoll/containerd/io.containerd.runtime.v2.task/*/*; do
        [ ! -d "$bu_dir" ] || printf '%s\n' "$bu_dir"
    done
}

# pods_pids prints the processes in the cgroups of this node's containers.
pods_pids() {
    [ -z "$ids" ] || grep -l -F -e "$ids" /proc/[0-9]*/cgroup 2>/dev/null | cut -d/ -f3
}

# runtime_pids prints the shims and the containerd of this node, known by the file that they run. A process in another mount
# namespace may run a file of the same name: that one is not ours.
runtime_pids() {
    for rp_dir in /proc/[0-9]*; do
        case $(readlink "$rp_dir/exe" 2>/dev/null) in
        "$data"/data/* | "$bin_dir"/*) [ "$(readlink "$rp_dir/ns/mnt")" = "$(readlink /proc/self/ns/mnt)" ] || continue ;;
        *) continue ;;
        esac
        case $(readlink "$rp_dir/exe" 2>/dev/null) in
        "$data"/data/*) echo "${rp_dir#/proc/}" ;;
        "$bin_dir/atoll" | "$bin_dir/atoll (deleted)")
            [ "$(tr '\0' ' ' <"$rp_dir/cmdline" | cut -d' ' -f2)" != containerd ] || echo "${rp_dir#/proc/}"
            ;;
        esac
    done
}

# signal NAME PIDS
signal() {
    for si_pid in $2; do kill "-$1" "$si_pid" 2>/dev/null; done
}

# stop_processes lets the pods end by themselves for a while, then ends what is left.
stop_processes() {
    sp_left=${ATOLL_KILLALL_GRACE:-10}
    sp_pids=$(pods_pids)
    [ -z "$sp_pids" ] || say "asking $(echo "$sp_pids" | wc -l) processes of pods to end"
    signal TERM "$sp_pids"
    while [ -n "$sp_pids" ] && [ "$sp_left" -gt 0 ]; do
        sleep 1
        sp_left=$((sp_left - 1))
        sp_pids=$(pods_pids)
    done
    for sp_round in 1 2 3; do   # a process may fork while it is being looked for
        sp_pids=$(runtime_pids; pods_pids)
        [ -n "$sp_pids" ] || return 0
        signal KILL "$sp_pids"
        sleep "$((sp_round - 1))"
    done
}

unmount_all() {
    for um_path in $(mounts_below /run/atoll "$data/agent" /var/lib/kubelet) $netns; do
        um_path=$(printf '%b' "$um_path")   # spaces are written as \040
        umount "$um_path" 2>/dev/null || umount -l "$um_path" 2>/dev/null || [ ! -d "$um_path" ] || say "could not unmount $um_path"
    done
    for um_path in $netns; do rm -f "$um_path"; done
}

# clean_network removes tables, links and routes of this node. A pod's own link went with its network namespace.
clean_network() {
    nft=$(command -v nft) || for nft in "$data"/data/*/bin/nft; do [ -x "$nft" ] && break; done
    if [ -x "$nft" ]; then
        "$nft" list tables 2>/dev/null | while read -r _ cn_family cn_table; do
            case $cn_table in
            kube-proxy | atoll | atoll-*) "$nft" delete table "$cn_family" "$cn_table" ;;
            cni_hostport) clean_hostports "$cn_family" ;;
            esac
        done
    else
        say "no nft found: packet rules stay until the next boot"
    fi
    if command -v ip >/dev/null 2>&1; then
        for cn_link in /sys/class/net/flannel.1 /sys/class/net/flannel-v6.1 /sys/class/net/atoll*; do
            [ ! -e "$cn_link" ] || ip link delete "${cn_link##*/}"
        done
        cn_pods=$(sed -n 's/^FLANNEL_NETWORK=//p' /run/flannel/subnet.env /run/atoll/flannel/subnet.env 2>/dev/null | head -n 1)
        ip route flush root "${cn_pods:-10.42.0.0/16}" 2>/dev/null
    elif [ -e /sys/class/net/flannel.1 ]; then
        say "no ip command found: the link flannel.1 stays until the next boot"
    fi
}

# clean_hostports FAMILY removes the forwarded ports of this node's pods; the table may serve other runtimes too.
clean_hostports() {
    "$nft" -a list table "$1" cni_hostport | awk '/^[ \t]*chain/ { chain = $2 } / comment ".* # handle / { print chain, $NF, $0 }' | while read -r ch_chain ch_handle ch_rule; do
        for ch_id in $ids; do
            case $ch_rule in *"$ch_id"*) "$nft" delete rule "$1" cni_hostport "$ch_chain" handle "$ch_handle" && break ;; esac
        done
    done
}

main() {
    [ "$(id -u)" = 0 ] || fatal "this needs root" "run: sudo $0"
    data=$(data_folder)
    # What pods own is written down in their bundles, which the unmounting takes away.
    ids=$(bundles | sed 's|.*/||')
    netns=$(bundles | while read -r dir; do grep -o '"/\(var/\)*run/netns/cni-[0-9A-Za-z-]*"' "$dir/config.json" 2>/dev/null; done | tr -d '"' | sort -u)
    stop_service
    stop_processes
    unmount_all
    clean_network
    if [ -n "$(mounts_below /run/atoll)" ]; then
        say "something is still mounted below /run/atoll: it stays"
    else
        rm -rf /run/atoll
    fi
    say "atoll and its pods are stopped"
}

main "$@"
EOF
}

uninstall_script() {
    facts
    printf 'systemd_dir=%s\nenv_file=%s\n' "$(quote "$systemd_dir")" "$(quote "$env_file")"
    cat <<'EOF'

# Removes atoll from this machine: program, service, settings and, unless --keep-data is given, all data of the node.

confirm() {
    yes=no keep=no
    for arg in "$@"; do
        case $arg in
        --yes | -y) yes=yes ;;
        --keep-data) keep=yes ;;
        *) fatal "unknown argument $arg" "use --yes (do not ask) or --keep-data (leave $data and /etc/atoll)" 2 ;;
        esac
    done
    [ $yes = no ] || return 0
    what="This removes atoll and stops its pods."
    [ $keep = yes ] || what="$what ALL its data is lost: the cluster's objects on this node, volumes, images, settings ($data, /etc/atoll, /var/lib/kubelet)."
    [ -t 0 ] || fatal "$what" "run it with --yes if that is what you want" 2
    printf '%s\nContinue? [y/N] ' "$what" >&2
    read -r answer
    case $answer in [yY]*) ;; *) fatal "nothing was removed" "answer y to continue" ;; esac
}

remove_service() {
    case $init in
    systemd)
        systemctl disable "$service" >/dev/null 2>&1
        systemctl reset-failed "$service" >/dev/null 2>&1
        rm -f "$systemd_dir/$service.service" "$env_file"
        systemctl daemon-reload
        ;;
    openrc)
        rc-update del "$service" default >/dev/null 2>&1
        rm -f "/etc/init.d/$service" "/etc/logrotate.d/$service" "/var/log/$service.log"* "$env_file"
        ;;
    esac
}

remove_data() {
    left=$(mounts_below "$data" /var/lib/kubelet /run/atoll)
    [ -z "$left" ] || fatal "still mounted: $(echo "$left" | tr '\n' ' ')" "unmount it (umount PATH), then run $0 again; the data was not touched"
    for dir in "$data" /var/lib/kubelet; do
        [ ! -e "$dir" ] || { find "$dir" -mindepth 1 -maxdepth 1 -exec rm -rf {} +; rmdir "$dir" 2>/dev/null || say "$dir is empty now, but stays: it is a mount"; }
    done
    rm -rf /run/atoll /run/flannel /var/log/pods /var/log/containers /etc/atoll
}

main() {
    [ "$(id -u)" = 0 ] || fatal "this needs root" "run: sudo $0"
    data=$(data_folder)
    case $data in /?*) ;; *) fatal "the data folder is '$data'" "correct data-dir in /etc/atoll/config.yaml" ;; esac
    confirm "$@"
    [ ! -x "$bin_dir/atoll-killall.sh" ] || "$bin_dir/atoll-killall.sh" || exit 1
    remove_service
    [ $keep = yes ] || remove_data
    for link in kubectl ctr; do
        [ "$(readlink "$bin_dir/$link" 2>/dev/null)" != atoll ] || rm -f "$bin_dir/$link"
    done
    rm -f "$bin_dir/atoll" "$bin_dir/atoll-killall.sh" "$bin_dir/atoll-uninstall.sh"
    say "atoll is removed"
}

main "$@"
EOF
}

main() {
    umask 022
    [ "$(id -u)" = 0 ] || fatal "this needs root" "pipe it into 'sudo sh -' instead, with the variables after sudo: curl -sfL ... | sudo ATOLL_TOKEN=... sh -"
    check_variables
    read_settings "$@"
    check_environment
    check_machine
    take_lock
    rm -rf "$root$bin_dir"/.atoll-install.*   # left by a run that was cut short
    work=$(mktemp -d "$root$bin_dir/.atoll-install.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    trap 'exit 130' INT TERM HUP
    obtain_binary
    # First what undoes an installation, last what would make the init system start it.
    killall_script | write_file "$root$bin_dir/atoll-killall.sh" 0755
    uninstall_script | write_file "$root$bin_dir/atoll-uninstall.sh" 0755
    install_binary
    install_links
    install_service
    save_settings
    start_service
}

# The whole script has arrived when this line is read: a download that broke off does nothing.
main "$@" </dev/null
