#!/bin/sh
# Cynosure from the command line: ./with_cli.sh http://127.0.0.1:8000 FOLDER (with `cynosure` on the PATH)
set -eu
export CYNOSURE_URL=$1
folder=$2

# Pictures, with a bar that follows the job.
cynosure generate --label sneaker --scale 3 --steps 10 -n 2 -o "$folder"

# Many, with pictures a second and the time left. If started again, it resumes where it stopped.
printf '{"class_label": 1, "steps": 4}\n{"class_label": 2, "steps": 4}\n' > "$folder/many.ndjson"
cynosure batch "$folder/many.ndjson" -o "$folder/many"

# The same bytes from the request stored in a picture.
cynosure again "$folder/many/00001-00.png" -o "$folder/again.png"

# Cancelling: Ctrl-C cancels the job you are waiting for; `cancel` takes any job.
cynosure generate --label coat --steps 1000 -n 8 -o "$folder" 2> "$folder/cancelled.txt" &
waiting=$!
until job=$(cynosure jobs --json --limit 1 | sed -n 's/.*"jobs": \[{"id": "\([^"]*\)", "status": "\(queued\|running\)".*/\1/p') && [ -n "$job" ]; do
  sleep 0.2
done
cynosure cancel "$job"
wait $waiting && exit 1 || echo "exit code $?: cancelled"

# Recovering: one line says what to change; the exit code is 1 for a refusal and 3 if no server answers.
cynosure generate --label sneker -o "$folder" || cynosure generate --label sneaker --steps 4 --seed 5 -o "$folder/recovered"
