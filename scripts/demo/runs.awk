# Tabulates which task ran on which worker and when, in one part of the demo.
#
# Reads these files:
#   out.N     the output of worker N; its k-th "Received" line names its k-th started task,
#             because a worker with one thread runs one task after the other
#   events.N  the events of worker N, one JSON object per line, with the task's id
#   marks     signals to a worker: number, time, words
#
# Prints one row for each run, tab-separated: lane, task, start, end, how it ended. The rows of a
# lane are in order. How is the event's word (done, returned, ...), "cut" for a run without an end,
# or "again" for a task that was done after an earlier run without an end. A mark is a row whose
# second field has its words; its how is "mark".

BEGIN { OFS = "\t" }

FNR == 1 {
    worker = FILENAME
    sub(/.*\./, "", worker)
}

FILENAME ~ /\/marks$/ {
    struck[$1] = $2
    words = $0
    sub(/^[^ ]+ [^ ]+ /, "", words)
    mark[$1] = words
    next
}

FILENAME ~ /\/out\.[0-9]+$/ && /^ \[x\] Received '/ {
    split($0, quoted, "'")
    split(quoted[2], word, " ")
    heard[worker, ++received[worker]] = word[1]
    next
}

FILENAME ~ /\/events\.[0-9]+$/ { note(field("event"), field("task"), field("time")) }

END {
    for (run = 1; run <= runs; run++) {
        if (how[run] == "") {
            how[run] = "cut"
            end[run] = struck[lane[run]] ? struck[lane[run]] : start[run]
        }
        if (how[run] == "done" && ran_before(run)) how[run] = "again"
        print "worker " lane[run], name[id[run]], start[run], end[run], how[run]
    }
    for (worker in mark) print "worker " worker, mark[worker], struck[worker], struck[worker], "mark"
}

# Finds a run by its task, because a task may start before the last one's end is noted.
function note(event, task, time) {
    if (event == "started") {
        name[task] = heard[worker, ++begun[worker]]
        begin(task, time)
    } else if (event == "returned") {
        begin(task, time)
        finish(runs, event, time)
    } else {
        finish(open[worker, task], event, time)
    }
}

function begin(task, time) {
    lane[++runs] = worker
    id[runs] = task
    start[runs] = time
    open[worker, task] = runs
}

function finish(run, event, time) {
    how[run] = event
    end[run] = time
}

function ran_before(run,    other) {
    for (other = 1; other <= runs; other++)
        if (id[other] == id[run] && how[other] != "returned" && start[other] + 0 < start[run] + 0) return 1
    return 0
}

# One value of a flat JSON object, without its quotes.
function field(key,    value) {
    if (!match($0, "\"" key "\":(\"[^\"]*\"|[^,}]*)")) return ""
    value = substr($0, RSTART + length(key) + 3, RLENGTH - length(key) - 3)
    gsub(/"/, "", value)
    return value
}
