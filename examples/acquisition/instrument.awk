#!/usr/bin/awk -f
# An instrument for `invsolve acquire` that is not Python: answers from a text file, one line of numbers per group.
#
#   mkfifo asked answered
#   awk -v data=rows.txt -f instrument.awk < asked > answered &
#   invsolve acquire -o image.h5 --prior mine --operator inpainting ... > asked < answered
#
# rows.txt: line 1 is group 0; its numbers, separated by commas, stand in the order of a measurement's entries.
BEGIN { while ((getline line < data) > 0) row[count++] = line }

/"measure"/ {
    groups = $0
    sub(/.*\[/, "", groups)
    sub(/\].*/, "", groups)
    size = split(groups, group, /[ ,]+/)
    values = ""
    for (k = 1; k <= size; k++) {
        # A scanner would measure here.
        if (group[k] + 0 >= count) {
            print "{\"error\": \"there is no line for group " group[k] "\"}"
            exit
        }
        values = values (k > 1 ? ", " : "") "[" row[group[k] + 0] "]"
    }
    print "{\"groups\": [" groups "], \"values\": [" values "]}"
    fflush()
}

/"refused"/ { print "refused: " $0 > "/dev/stderr" }
/"done"/ { exit }
