#!/usr/bin/env bash
# Owns one private RabbitMQ per folder: start, stop, keep, look at, control.
# It never touches any other broker, nor the machine's own epmd.
set -eu -o pipefail

IMAGE=rabbitmq:3.13-management
START_SECONDS=60
STOP_SECONDS=15
ATTEMPTS=5
APT_SERVER=/usr/lib/rabbitmq/bin/rabbitmq-server

main() {
    dir=
    while [ $# -gt 0 ]; do
        case $1 in
            --dir) [ -n "${2:-}" ] || usage_error "--dir needs a folder"; dir=$2; shift 2 ;;
            --dir=?*) dir=${1#--dir=}; shift ;;
            -h | --help) usage; exit 0 ;;
            -*) usage_error "unknown option $1" ;;
            *) break ;;
        esac
    done
    [ $# -gt 0 ] || usage_error "no command given"
    local command=$1
    shift
    [ "$command" = ctl ] || [ $# -eq 0 ] || [ "$command $*" = "stop --keep" ] || usage_error "'$command' does not take '$*'"
    resolve_dir
    load_state
    case $command in
        start) start ;;
        stop) stop "${1:-}" ;;
        status) status ;;
        url) url ;;
        pid) broker_pid ;;
        ctl) ctl "$@" ;;
        help) usage ;;
        *) usage_error "unknown command '$command'" ;;
    esac
}

usage() {
    cat <<'TEXT'
usage: scripts/broker.sh [--dir DIR] COMMAND

A private RabbitMQ for demos, tests and development: on free ports of 127.0.0.1,
beside any other broker and without touching it. Each DIR is one broker
(default: target/broker of this checkout).

  start         start it, wait until it speaks AMQP (at most 60 s), print its URL;
                running already: only print the URL
  stop          stop it and remove what start made in DIR
  stop --keep   stop it, keep its data: the next start brings the same node back,
                on the same port, with its durable queues
  status        one line; exit 0 running, 1 not
  url           print the URL; exit 1 when it does not run
  pid           print the process id of the broker itself, to signal it
  ctl ARGS...   rabbitmqctl ARGS... against this broker

start takes the first of these that there is:
  1. AMQP_URL in the environment: that broker is used and nothing is started.
     start prints the URL with its password masked, `url` prints all of it. The
     other commands, and an AMQP_URL that names DIR's own broker, mean DIR.
     For a private broker all the same: env -u AMQP_URL scripts/broker.sh start
  2. an installed rabbitmq-server
  3. Docker (the image rabbitmq:3.13-management)
  4. on Debian and Ubuntu, as root or with passwordless sudo: installs
     rabbitmq-server with apt-get, without starting the system's broker
  5. otherwise says what to install and exits 69

RW_QUEUE_TYPE=quorum
                           what a queue that is declared without a type is on a new broker
RW_ERL_ARGS                further arguments of an installed broker's Erlang, at each start
RW_MANAGEMENT=1            with the management plugin (its URL goes to stderr)
DIR/extra.conf             settings of your own, appended to the broker's
                           rabbitmq.conf at each start; stop leaves it alone
Exit: 0 done, 1 failed or not running, 2 usage, 69 nothing to start it with.
TEXT
}

# ---- the commands ----

start() {
    if [ -n "${AMQP_URL:-}" ] && [ "$AMQP_URL" != "$(own_url)" ]; then
        note "AMQP_URL is set: using that broker, starting nothing"
        masked "$AMQP_URL"
        return
    fi
    claim_dir
    if is_running; then
        answers "$port" || fail "the broker in $dir runs (pid $pid) but does not answer; stop it first: $0 --dir '$dir' stop"
        note "already running"
    else
        # Assigned on its own line: only so does its exit status end the script.
        local chosen=$kind
        [ -n "$chosen" ] || chosen=$(choose_kind)
        "start_$chosen"
    fi
    own_url
    [ -z "$management_port" ] || note "management: http://127.0.0.1:$management_port (guest, guest)"
}

stop() {
    if [ ! -d "$dir" ] || [ -z "$kind" ]; then
        if [ -d "$dir" ] && [ -n "$(foreign_entries)" ]; then
            fail "$dir was not made by this script; it stays as it is"
        fi
        note "not running"
        return
    fi
    take_lock
    load_state
    local was=stopped
    is_running || was="not running"
    halt
    if [ "$1" = --keep ]; then
        note "$was; its data stays in $dir"
    else
        wipe
        note "$was; removed its data"
    fi
}

status() {
    if ! is_running; then
        echo "not running: $dir"
        return 1
    elif ! answers "$port"; then
        echo "not answering: pid $pid, dir $dir"
        return 1
    fi
    echo "running: RabbitMQ ${version:-(unknown version)} ($kind), $(own_url), pid $pid, dir $dir"
}

url() {
    if [ -n "${AMQP_URL:-}" ]; then
        echo "$AMQP_URL"
    else
        need_running
        own_url
    fi
}

broker_pid() {
    need_running
    if [ "$kind" = docker ] && [ ! -d "/proc/$pid" ]; then
        fail "the broker runs in Docker's own machine: it has no process id here"
    fi
    echo "$pid"
}

ctl() {
    [ $# -gt 0 ] || usage_error "ctl needs the arguments of rabbitmqctl"
    need_running
    rabbitmqctl "$@"
}

rabbitmqctl() {
    if [ "$kind" = docker ]; then
        docker exec "$name" rabbitmqctl "$@"
        return
    fi
    find_native || fail "rabbitmqctl is gone: $(what_to_install)"
    (as_node "$bin/rabbitmqctl" -n "$node" "$@")
}

need_running() {
    is_running || fail "no broker runs in $dir; start it: $0 --dir '$dir' start"
}

own_url() {
    [ -z "$port" ] || echo "amqp://guest:guest@127.0.0.1:$port"
}

# ---- the folder and what it remembers ----

# Nothing is created here: only start makes a folder.
resolve_dir() {
    local here
    here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
    dir=${dir:-$here/target/broker}
    case $dir in /*) ;; *) dir=$PWD/$dir ;; esac
    case $dir in *$'\n'*) usage_error "a folder with a line break in its name cannot be used" ;; esac
    if [ -d "$dir" ]; then
        dir=$(cd "$dir" && pwd -P)
    fi
}

# Read, not sourced: a state file is data.
load_state() {
    kind='' node='' name='' port='' management_port='' distribution_port='' epmd_port='' pid='' epmd_pid='' lent_epmd_port='' version=''
    [ -r "$dir/node.env" ] || return 0
    local key value
    while IFS='=' read -r key value; do
        case $key in
            kind | node | name | port | management_port | distribution_port | epmd_port | pid | epmd_pid | lent_epmd_port | version)
                printf -v "$key" %s "$value" ;;
        esac
    done <"$dir/node.env"
}

save_state() {
    local key
    for key in kind node name port management_port distribution_port epmd_port pid epmd_pid lent_epmd_port version; do
        printf '%s=%s\n' "$key" "${!key}"
    done >"$dir/node.env.new"
    mv "$dir/node.env.new" "$dir/node.env"
}

claim_dir() {
    mkdir -p "$dir" 2>/dev/null || fail "cannot make the folder $dir"
    dir=$(cd "$dir" && pwd -P)
    [ -w "$dir" ] || fail "cannot write in the folder $dir"
    if [ -z "$kind" ] && [ -n "$(foreign_entries)" ]; then
        fail "$dir holds files that are not this script's; give a folder that is empty or not there"
    fi
    take_lock
    load_state
}

foreign_entries() {
    local entry
    for entry in "$dir"/* "$dir"/.[!.]*; do
        case ${entry##*/} in
            extra.conf | lock | lock.* | node | node.env | node.env.new | '*' | '.[!.]*') ;;
            *) echo "${entry##*/}" ;;
        esac
    done
}

# One start or stop per folder at a time. A lock whose owner is gone is void.
take_lock() {
    trap release EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    local deadline=$((SECONDS + START_SECONDS + STOP_SECONDS)) owner
    echo $$ >"$dir/lock.$$"
    # A hard link appears at once and with its content, so no reader sees an empty lock.
    until ln "$dir/lock.$$" "$dir/lock" 2>/dev/null; do
        # stop may have taken the whole folder away while this waited
        if [ ! -e "$dir/lock.$$" ]; then
            mkdir -p "$dir"
            echo $$ >"$dir/lock.$$"
            continue
        fi
        owner=$(cat "$dir/lock" 2>/dev/null || true)
        if [ -n "$owner" ] && ! is_process "$owner" broker.sh; then
            rm -f "$dir/lock"
            continue
        fi
        [ $SECONDS -lt $deadline ] || fail "another start or stop (pid $owner) holds $dir"
        sleep 0.1
    done
    rm -f "$dir/lock.$$"
    locked=yes
}

# Runs at every exit: undoes a start that did not get to its end.
release() {
    local code=$?
    trap '' HUP INT TERM
    rm -f "$dir/lock.$$"
    [ -n "${locked:-}" ] || exit $code
    if [ -n "${undo:-}" ]; then
        [ $code -lt 128 ] || note "interrupted: cleaning up"
        halt
        [ "$undo" != wipe ] || wipe
    fi
    rm -f "$dir/lock"
    rmdir "$dir" 2>/dev/null || true
    exit $code
}

# Only names that this script makes; a caller's extra.conf keeps the folder.
wipe() {
    if [ "$kind" = docker ]; then
        docker volume rm -f "$name" >/dev/null 2>&1 || note "could not remove Docker's volume $name"
    fi
    rm -rf "$dir/node"
    rm -f "$dir/node.env" "$dir/node.env.new"
    kind=
}

# ---- running or not ----

is_running() {
    case $kind in
        native)
            [ -n "$pid" ] || pid=$(cat "$dir/node/pid" 2>/dev/null || true)
            is_process "$pid" "-rw_broker $node " ;;
        docker)
            pid=$(docker top "$name" -eo pid,comm 2>/dev/null | awk '$2 ~ /^beam/ { print $1; exit }') && [ -n "$pid" ] ;;
        *) return 1 ;;
    esac
}

# A number alone proves nothing, since the system hands numbers out again.
is_process() {
    [ -n "$1" ] || return 1
    local args
    if [ -d /proc/self ]; then
        args=$(tr '\0' ' ' 2>/dev/null <"/proc/$1/cmdline") 2>/dev/null || return 1
    else
        args="$(ps -ww -o args= -p "$1" 2>/dev/null) " || return 1
    fi
    case $args in *"$2"*) ;; *) return 1 ;; esac
}

# The first bytes of a real AMQP handshake: a port that is merely open is not an answer.
answers() (
    exec 2>/dev/null 3<>"/dev/tcp/127.0.0.1/$1" || exit 1
    printf 'AMQP\0\0\11\1' >&3
    IFS= LC_ALL=C read -r -n 1 -t 2 byte <&3 && [ "$byte" = $'\001' ]
)

halt() {
    if [ "$kind" = docker ]; then
        docker stop -t $STOP_SECONDS "$name" >/dev/null 2>&1 || true
        docker rm -f "$name" >/dev/null 2>&1 || true
        return
    fi
    if is_running; then
        end_process "$pid" "-rw_broker $node " $STOP_SECONDS
    fi
    if is_process "$epmd_pid" "-port $epmd_port "; then
        end_process "$epmd_pid" "-port $epmd_port " 2
    fi
}

# TERM each second, because the Erlang machine loses one that comes as it begins; CONT because a
# stopped process would not see it.
end_process() {
    local deadline=$((SECONDS + $3)) told=
    while is_process "$1" "$2"; do
        if [ $SECONDS -ge $deadline ]; then
            kill -KILL "$1" 2>/dev/null || true
        elif [ "$told" != $SECONDS ]; then
            told=$SECONDS
            kill -TERM "$1" 2>/dev/null || ! is_process "$1" "$2" || fail "process $1 belongs to another user; stop it as that user"
            kill -CONT "$1" 2>/dev/null || true
        fi
        sleep 0.1
    done
}

# ---- which RabbitMQ ----

choose_kind() {
    if find_native; then
        echo native
    elif has_docker; then
        echo docker
    elif can_install; then
        install_with_apt
        echo native
    else
        note "nothing to start a broker with: $(what_to_install)"
        exit 69
    fi
}

what_to_install() {
    echo "install RabbitMQ 3.10 or later (Debian, Ubuntu: apt-get install rabbitmq-server; macOS: brew install rabbitmq), or run Docker, or set AMQP_URL"
}

# Sets bin, the folder of rabbitmq-server and rabbitmqctl, and epmd.
# Debian's /usr/sbin/rabbitmq-server changes user and folder, so it cannot run a private node.
find_native() {
    local candidate
    for candidate in "$APT_SERVER" "$(command -v rabbitmq-server || true)" \
        /opt/homebrew/sbin/rabbitmq-server /usr/local/sbin/rabbitmq-server \
        /usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin/rabbitmq-server /opt/rabbitmq*/sbin/rabbitmq-server; do
        [ -x "$candidate" ] || continue
        bin=$(dirname "$candidate")
        if [ ! -x "$bin/rabbitmqctl" ] || grep -q 'su rabbitmq\|runuser' "$candidate"; then
            continue
        fi
        find_erlang && return
    done
    return 1
}

find_erlang() {
    local place
    for place in "$(dirname "$(command -v erl || echo /usr/bin/erl)")" /opt/homebrew/bin /usr/local/bin /usr/lib/erlang/bin; do
        if [ -x "$place/erl" ] && [ -x "$place/epmd" ]; then
            erlang=$place
            return
        fi
    done
    return 1
}

has_docker() {
    command -v docker >/dev/null && docker info >/dev/null 2>&1
}

can_install() {
    command -v apt-get >/dev/null || return 1
    [ "$(id -u)" = 0 ] || { command -v sudo >/dev/null && sudo -n true 2>/dev/null; }
}

# One install at a time on the machine: two would take each other's policy-rc.d for the owner's.
install_with_apt() {
    local as_root=
    [ "$(id -u)" = 0 ] || as_root="sudo -n"
    note "installing the package rabbitmq-server with apt-get (and not starting its system broker)"
    # shellcheck disable=SC2016,SC2086  # the inner shell expands; no sudo, no word
    $as_root flock /run/rabbit-work-broker.lock bash -c '
        set -eu
        [ ! -x "$0" ] || exit 0
        policy=/usr/sbin/policy-rc.d mark="# of rabbit-work, for one install"
        restore() { rm -f "$policy"; [ ! -e "$policy.rabbit-work" ] || mv "$policy.rabbit-work" "$policy"; }
        if [ -e "$policy" ] && ! grep -q "$mark" "$policy"; then mv "$policy" "$policy.rabbit-work"; fi
        trap restore EXIT
        trap "exit 130" HUP INT TERM
        printf "#!/bin/sh\n%s\nexit 101\n" "$mark" >"$policy"
        chmod +x "$policy"
        export DEBIAN_FRONTEND=noninteractive
        apt-get -o DPkg::Lock::Timeout=120 update
        apt-get -o DPkg::Lock::Timeout=120 install -y --no-install-recommends rabbitmq-server
        if command -v systemctl >/dev/null; then systemctl disable rabbitmq-server || true; fi
    ' "$APT_SERVER" >&2 || fail "apt-get could not install rabbitmq-server; $(what_to_install)"
}

# ---- an installed RabbitMQ ----

start_native() {
    find_native || fail "no usable rabbitmq-server: $(what_to_install)"
    local attempt
    halt # a crashed node leaves its name server
    begin native
    [ -z "$port" ] || gets_free "$port" || fail "port $port of the kept broker is taken by another program; free it, or give up its data: $0 --dir '$dir' stop"
    for ((attempt = 1; attempt <= ATTEMPTS; attempt++)); do
        choose_ports
        write_node_files
        save_state
        if launch_epmd && launch_node && wait_ready && set_queue_type; then
            version=$(sed -n "s/.*Starting RabbitMQ \([0-9][^ ]*\).*/\1/p" "$dir/node/log/$node.log" | head -n 1)
            save_state
            undo=
            return
        fi
        collided || break
        note "a port was taken meanwhile: trying others"
        halt
        [ "$undo" != wipe ] || { wipe; begin native; }
    done
    show_log
    fail "the broker did not start (a start may take $START_SECONDS s)"
}

# A broker that was there before keeps its data when its start fails.
begin() {
    undo=keep
    [ -n "$kind" ] || undo=wipe
    [ "$undo" = keep ] || port='' management_port='' node='' name=''
    kind=$1 pid='' epmd_pid=''
}

# Only the AMQP and management ports and the node's name have to outlive a restart.
choose_ports() {
    [ -n "$port" ] || port=$(free_port)
    [ -n "$node" ] || node="rw-$port@localhost"
    distribution_port=$(free_port)
    epmd_port=${lent_epmd_port:-$(free_port)}
    if [ "${RW_MANAGEMENT:-}" != 1 ]; then
        management_port=
    elif [ -z "$management_port" ]; then
        management_port=$(free_port)
    fi
}

# Below the range that systems give to outgoing connections, and not RabbitMQ's own ports.
free_port() {
    local candidate
    while :; do
        candidate=$((10240 + RANDOM % 22000))
        case $candidate in 15672 | 25672) continue ;; esac
        is_free $candidate && break
    done
    echo $candidate
}

# A node that was killed is gone from the list of processes before its port is.
gets_free() {
    local deadline=$((SECONDS + 10))
    until is_free "$1"; do
        [ $SECONDS -lt $deadline ] || return 1
        sleep 0.1
    done
}

is_free() {
    ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null
}

write_node_files() {
    mkdir -p "$dir/node/home" "$dir/node/mnesia" "$dir/node/log"
    rm -f "$dir/node/pid"
    rm -f "$dir/node/log/"*
    : >"$dir/node/out"
    : >"$dir/node/environment.conf"
    {
        echo "listeners.tcp.1 = 127.0.0.1:$port"
        echo "log.file.level = info"
        echo "disk_free_limit.absolute = 50MB"
        echo "vm_memory_high_watermark.relative = 0.4"
        if [ -n "$management_port" ]; then
            echo "management.tcp.ip = 127.0.0.1"
            echo "management.tcp.port = $management_port"
        fi
        [ ! -r "$dir/extra.conf" ] || cat "$dir/extra.conf"
    } >"$dir/node/rabbitmq.conf"
    if [ -n "$management_port" ]; then
        echo "[rabbitmq_management]."
    else
        echo "[]."
    fi >"$dir/node/plugins"
}

# Becomes COMMAND, in an environment that holds this node's settings and nobody else's.
as_node() {
    exec env -i PATH="$erlang:$PATH" HOME="$dir/node/home" LC_ALL=C.UTF-8 TERM="${TERM:-dumb}" \
        ELIXIR_ERL_OPTIONS=+fnu ERL_CRASH_DUMP="$dir/node/log/erl_crash.dump" ERL_EPMD_ADDRESS=127.0.0.1 ERL_EPMD_PORT="$epmd_port" \
        RABBITMQ_NODENAME="$node" RABBITMQ_DIST_PORT="$distribution_port" \
        RABBITMQ_MNESIA_BASE="$dir/node/mnesia" RABBITMQ_LOG_BASE="$dir/node/log" \
        RABBITMQ_PID_FILE="$dir/node/pid" RABBITMQ_CONFIG_FILE="$dir/node/rabbitmq" \
        RABBITMQ_CONFIG_FILES="$dir/node/conf.d" RABBITMQ_ADVANCED_CONFIG_FILE="$dir/node/advanced.config" \
        RABBITMQ_CONF_ENV_FILE="$dir/node/environment.conf" \
        RABBITMQ_ENABLED_PLUGINS_FILE="$dir/node/plugins" \
        RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="+S 2:2 -kernel inet_dist_use_interface {127,0,0,1} -rw_broker $node ${RW_ERL_ARGS:-} " \
        RABBITMQ_ALLOW_INPUT=1 "$@"
}

# In a session of its own, so that a Ctrl-C for the caller does not reach it, and
# without the caller's descriptors. The process id stays $!: nothing here forks.
detached() {
    exec </dev/null >>"$dir/node/out" 2>&1 3>&- 4>&- 5>&- 6>&- 7>&- 8>&- 9>&-
    cd "$dir/node"
    if command -v setsid >/dev/null; then
        as_node setsid "$@"
    else
        as_node perl -MPOSIX -e 'POSIX::setsid(); exec @ARGV' "$@"
    fi
}

# The node's own name server, or its cluster's: the machine's epmd is neither used nor left behind.
launch_epmd() {
    [ -z "$lent_epmd_port" ] || return 0
    detached "$erlang/epmd" -port "$epmd_port" -address 127.0.0.1 &
    epmd_pid=$!
    save_state
    local deadline=$((SECONDS + 10))
    while is_free "$epmd_port"; do
        kill -0 "$epmd_pid" 2>/dev/null || return 1
        [ $SECONDS -lt $deadline ] || return 1
        sleep 0.05
    done
    is_process "$epmd_pid" "-port $epmd_port "
}

# RABBITMQ_ALLOW_INPUT makes rabbitmq-server become the Erlang machine instead of
# waiting for it; -noinput takes the console away again.
launch_node() {
    detached "$bin/rabbitmq-server" -noinput &
    pid=$!
    save_state
}

# The log line tells that it is our node that listens there.
wait_ready() {
    local deadline=$((SECONDS + START_SECONDS))
    until grep -qs "started .*:$port\$" "$dir/node/log/$node.log" && answers "$port"; do
        kill -0 "$pid" 2>/dev/null && has_epmd || return 1
        [ $SECONDS -lt $deadline ] || return 1
        sleep 0.1
    done
}

has_epmd() {
    [ -n "$lent_epmd_port" ] || is_process "$epmd_pid" "-port $epmd_port "
}

# A virtual host gets its default when it is made, so that of a new broker is made anew.
set_queue_type() {
    if [ "$undo" != wipe ] || [ -z "${RW_QUEUE_TYPE:-}" ]; then return; fi
    {
        rabbitmqctl delete_vhost / &&
            rabbitmqctl add_vhost / --default-queue-type "$RW_QUEUE_TYPE" &&
            rabbitmqctl set_permissions -p / guest '.*' '.*' '.*'
    } >>"$dir/node/out" 2>&1
}

# A name server ends at once, and says nothing, when its port is taken; the node
# may have gone on with the one that has it, so this counts whatever the node says.
collided() {
    ! has_epmd || grep -qsi 'eaddrinuse\|address already in use\|in use by another\|already running' "$dir/node/out" "$dir/node/log/$node.log"
}

# The cause is among the first errors; what follows them is the node's way down.
show_log() {
    if [ "$kind" = docker ]; then
        note "the end of its log:"
        docker logs --tail 30 "$name" || true
    else
        note "the first errors in its log, and its end:"
        grep -hs -m 12 '\[error\].*> *[^ ]' "$dir/node/out" "$dir/node/log/$node.log" || true
        tail -n 8 "$dir/node/out"
    fi >&2
}

# ---- Docker ----

# The data is in a volume of the same name, so that it outlives a container that
# removes itself, and the host name is fixed, because RabbitMQ files data under it.
start_docker() {
    has_docker || fail "Docker does not answer, and the broker in $dir is Docker's; $(what_to_install)"
    begin docker
    name="rabbit-work-$(printf %s "$dir" | cksum | cut -d ' ' -f 1)"
    local settings=()
    [ ! -r "$dir/extra.conf" ] || settings=(-v "$dir/extra.conf:/etc/rabbitmq/conf.d/90-extra.conf:ro")
    save_state
    pull_image
    docker run -d --rm --name "$name" --hostname "$name" -v "$name:/var/lib/rabbitmq" \
        ${settings[@]+"${settings[@]}"} -p "127.0.0.1:$port:5672" -p "127.0.0.1:$management_port:15672" \
        "$IMAGE" >/dev/null || fail "docker could not run $IMAGE"
    port=$(published_port 5672)
    management_port=$(published_port 15672)
    save_state
    { wait_container && set_queue_type; } || { show_log; fail "the broker did not start (a start may take $START_SECONDS s)"; }
    version=$(docker exec "$name" printenv RABBITMQ_VERSION 2>/dev/null || true)
    save_state
    undo=
}

# In the background, so that a signal interrupts the wait and not the download's end.
pull_image() {
    docker image inspect "$IMAGE" >/dev/null 2>&1 && return
    note "fetching the image $IMAGE"
    docker pull -q "$IMAGE" >/dev/null &
    local download=$!
    trap 'kill $download 2>/dev/null; exit 130' INT
    trap 'kill $download 2>/dev/null; exit 143' HUP TERM
    wait $download || fail "docker could not fetch $IMAGE"
    trap 'exit 130' INT
    trap 'exit 143' HUP TERM
}

published_port() {
    docker port "$name" "$1/tcp" | sed -n 's/^127\.0\.0\.1://p' | head -n 1
}

wait_container() {
    local deadline=$((SECONDS + START_SECONDS))
    until answers "$port"; do
        [ -n "$(docker ps -q --filter "name=^/$name\$")" ] || return 1
        [ $SECONDS -lt $deadline ] || return 1
        sleep 0.2
    done
}

# ---- telling ----

# Greedy on purpose: a password may hold an @, and hiding too much is harmless.
masked() {
    printf '%s\n' "$1" | sed 's#://\([^:@/]*\):.*@#://\1:***@#'
}

note() {
    echo "broker: $*" >&2
}

fail() {
    note "$*"
    exit 1
}

usage_error() {
    note "$* (see scripts/broker.sh --help)"
    exit 2
}

[ "${BASH_SOURCE[0]}" != "$0" ] || main "$@"
