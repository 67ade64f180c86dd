# Starting and ending the cluster's own processes, and no others. Sourced by `up` and `down`.
#
# A pid file holds the pid and the moment at which that process started (field 22 of /proc/PID/stat): a pid that the
# kernel has given to another process since is not ours to end.

# The cluster's daemons and what they start carry this in their environment; so a job step left behind by a daemon that
# crashed is still known.
mark_name=DVRUN_TEST_CLUSTER

started_at() { # PID
    local stat
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    # The program's name may hold spaces: count from the closing parenthesis.
    set -- ${stat##*) }
    echo "${20}"
}

start() { # NAME COMMAND…: in its own session, output to log/NAME.out
    local name=$1
    shift
    env "$mark_name=$dir" setsid "$@" >>"$dir/log/$name.out" 2>&1 </dev/null &
    echo "$! $(started_at $!)" >"$dir/pid/$name"
    disown
}

start_daemon() { # slurmctld, or a node: c1
    local conf=$dir/slurm.conf
    case $1 in
        slurmctld) SLURM_CONF=$conf start slurmctld slurmctld -D -f "$conf" ;;
        c[0-9]*) SLURM_CONF=$conf start "$1" slurmd -D -f "$conf" -N "$1" ;;
        *) return 1 ;;
    esac
}

alive() { # NAME
    local pid since
    read -r pid since 2>/dev/null <"$dir/pid/$1" || return 1
    [ "$(started_at "$pid")" = "$since" ] && ! grep -q '^State:.Z' "/proc/$pid/status" 2>/dev/null
}

stop() { # NAME SECONDS: asks, waits, insists
    local pid since
    if alive "$1"; then
        read -r pid since <"$dir/pid/$1"
        kill -TERM "$pid" 2>/dev/null
        within "$2" not alive "$1" || kill -KILL "$pid" 2>/dev/null
        within 10 not alive "$1" || echo "process $pid ($1) does not end" >&2
    fi
    rm -f "$dir/pid/$1"
}

not() { ! "$@"; }

within() { # SECONDS COMMAND…: true as soon as the command is, false when it never was
    local end=$(($(date +%s) + $1))
    shift
    until "$@"; do
        [ "$(date +%s)" -lt "$end" ] || return 1
        sleep 0.2
    done
}

descendants() { # PID: itself first. Killed in this order none lives to see the end of one below it, and to tell of it.
    local child
    echo "$1"
    for child in $(cat "/proc/$1"/task/*/children 2>/dev/null); do
        descendants "$child"
    done
}

is_of_node() { # PID NODE: whether a program below it was told so
    local pid
    for pid in $(descendants "$1"); do
        tr '\0' '\n' 2>/dev/null <"/proc/$pid/environ" | grep -qx "SLURMD_NODENAME=$2" && return 0
    done
    return 1
}

# Job steps (slurmstepd) outlive a slurmd that ends; they carry our mark, the programs below them need not.
stop_job_steps() { # [NODE]: those of one node alone
    local process pid
    for process in /proc/[0-9]*; do
        pid=${process#/proc/}
        case "$(readlink "$process/exe" 2>/dev/null)" in
            */slurmstepd*) ;;
            *) continue ;;
        esac
        if tr '\0' '\n' 2>/dev/null <"$process/environ" | grep -qx "$mark_name=$dir" && { [ $# = 0 ] || is_of_node "$pid" "$1"; }; then
            kill -KILL $(descendants "$pid") 2>/dev/null
        fi
    done
}
