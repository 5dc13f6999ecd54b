# Owns what a part of the demo learns from its workers: a table of which task ran where and when.
#
# Reads the files of one part, by name:
#   out.N     what worker N printed; its k-th "Received" line names its k-th started task,
#             because a worker with one thread starts one task after the other
#   events.N  the events of worker N, one JSON object per line, by the task's id
#   marks     what was done to a worker from outside: number, time, words
#
# Prints one row for each run, tab-separated: lane, task, start, end, how it ended. The rows of a
# lane are in order. How is the event's word (done, returned, ...), "cut" for a run without an
# end, or "again" for one that was done after an earlier run of the same task did not end.
# A mark is a row whose second field holds its words, and how is "mark".

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

# The next task may start before the end of the last is noted, so a run is found by its task.
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
