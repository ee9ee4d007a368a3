# test/check.sh -- what a script's checks are made of, for scripts that have set suite, dir and failed=0.
expect() {                                   # NAME COMMAND...: whether the command succeeds
    name=$1
    shift
    if "$@" > $dir/output 2>&1; then echo "ok $suite/$name"
    else
        failed=1
        echo "FAIL $suite/$name: $(tail -1 $dir/output)"
    fi
}
refused() {                                  # NAME CODE TEXT COMMAND...: one line on standard error that has the text
    name=$1 code=$2 text=$3
    shift 3
    "$@" > /dev/null 2> $dir/output
    got=$?
    if [ $got -eq $code ] && [ "$(wc -l < $dir/output)" -eq 1 ] && grep -q -e "$text" $dir/output
    then echo "ok $suite/$name: $(cat $dir/output)"
    else
        failed=1
        echo "FAIL $suite/$name: exit $got, $(cat $dir/output)"
    fi
}
