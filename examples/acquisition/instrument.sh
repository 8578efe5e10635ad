#!/bin/sh
# An instrument for `invsolve acquire` that is not Python: it answers from a text file, one line of numbers per group.
#
#   mkfifo asked answered
#   sh instrument.sh rows.txt < asked > answered &
#   invsolve acquire -o image.h5 --prior mine --operator inpainting ... > asked < answered
#
# Line 1 of rows.txt is group 0; its numbers, separated by commas, stand in the order of a measurement's entries.
while read -r line; do
    case $line in
    *'"measure"'*)
        groups=$(printf '%s' "$line" | sed 's/.*\[//; s/\].*//')
        values=
        for group in $(printf '%s' "$groups" | tr ',' ' '); do
            # A scanner would measure here.
            row=$(sed -n "$((group + 1))p" "$1")
            [ -n "$row" ] || { echo "{\"error\": \"there is no line for group $group\"}"; exit 1; }
            values="$values${values:+, }[$row]"
        done
        echo "{\"groups\": [$groups], \"values\": [$values]}"
        ;;
    *'"refused"'*) echo "$line" >&2 ;;
    *'"done"'*) exit ;;
    esac
done
