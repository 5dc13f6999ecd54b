# Draws the table of runs.awk: a lane for each worker along a time axis, in 80 columns.
#
# [4====] is a task that ended, [4==x one that was interrupted, ... a pause. The words of a mark are
# below its lane.
# Settings: span, the shortest axis in seconds, to compare two pictures; colour, 1 on a terminal.

BEGIN {
    FS = "\t"
    LABEL = 12
    ROOM = 61
    GREEN = 32; RED = 31; YELLOW = 33; GREY = 90
}

{
    if (!($1 in lane_number)) {
        lane_number[$1] = ++lanes
        label[lanes] = $1
    }
    rows++
    lane[rows] = lane_number[$1]; task[rows] = $2; start[rows] = $3; end[rows] = $4; how[rows] = $5
    if (origin == "" || $3 + 0 < origin) origin = $3 + 0
    if ($4 + 0 > last) last = $4 + 0
}

END {
    if (rows == 0) exit
    choose_scale()
    for (number = 1; number <= lanes; number++) draw_lane(number)
    draw_axis()
}

# A second has a whole number of columns if possible, so that equal times look equal.
function choose_scale() {
    if (last - origin > span) span = last - origin
    scale = ROOM / span
    if (scale > 8) scale = 8
    if (scale > 1) scale = int(scale)
    for (step = 1; step * scale < 4; step = step == 2 ? 5 : 2 * step) ;
}

function draw_lane(number,    row, free, marks, marked) {
    clear()
    free = 0
    for (row = 1; row <= rows; row++) {
        if (lane[row] != number || how[row] == "returned") continue
        if (how[row] == "mark") marks = marks row " "
        else free = draw_run(row, free)
    }
    put_line(label[number], "|")
    marked = split(marks, row_of, " ")
    for (row = 1; row <= marked; row++) draw_mark(row_of[row])
}

# Draws at least three columns, after the run before; returns the first free column.
function draw_run(row, free,    from, to, colour_code, words, fill) {
    from = column(start[row])
    if (from < free) from = free
    to = column(end[row])
    if (to < from + 3) to = from + 3
    colour_code = how[row] == "cut" ? RED : how[row] == "again" ? YELLOW : how[row] == "pause" ? GREY : GREEN
    words = task[row]
    if (how[row] == "again" && to - from >= length(words) + 8) words = words " again"
    words = substr(words, 1, to - from - 2)
    fill = how[row] == "pause" ? "." : "="
    while (length(words) < to - from - 2) words = words fill
    if (how[row] == "cut") words = "[" words "x"
    else if (how[row] == "pause") words = "." words "."
    else words = "[" words "]"
    write_at(from, words, colour_code)
    return to
}

function draw_mark(row) {
    clear()
    write_at(column(start[row]), "^ " task[row] requeued(lane[row]), RED)
    put_line("", "|")
}

function requeued(number,    row, tasks) {
    for (row = 1; row <= rows; row++)
        if (lane[row] == number && how[row] == "returned") tasks = tasks " " task[row]
    return tasks == "" ? "" : ":" tasks " requeued"
}

function draw_axis(    second, text) {
    clear()
    for (second = 0; second <= span * scale; second++) write_at(second, "-", GREY)
    for (second = 0; second <= span + 0.001; second += step) write_at(int(second * scale + 0.5), "+", GREY)
    put_line("", " ")
    clear()
    for (second = 0; second <= span + 0.001; second += step) {
        text = second + step > span + 0.001 ? second " s" : second ""
        write_at(int(second * scale + 0.5), text, GREY)
    }
    put_line("", " ")
}

function column(time) { return int((time - origin) * scale + 0.5) }

function clear() {
    used = 0
    split("", cell)
    split("", paint)
}

function write_at(from, text, colour_code,    i) {
    for (i = 1; i <= length(text); i++) {
        cell[from + i] = substr(text, i, 1)
        paint[from + i] = colour_code
    }
    if (from + length(text) > used) used = from + length(text)
}

function put_line(head, edge,    line, i, current) {
    line = sprintf("  %-" (LABEL - 1) "s%s", head, edge)
    for (i = 1; i <= used; i++) {
        if (colour && paint[i] != current) line = line "\033[" (paint[i] ? paint[i] : 0) "m"
        current = paint[i]
        line = line ((i in cell) ? cell[i] : " ")
    }
    if (colour && current) line = line "\033[0m"
    sub(/ +$/, "", line)
    print line
}
