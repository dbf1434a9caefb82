#!/bin/sh
# Cynosure with curl and nothing else: ./with_curl.sh http://127.0.0.1:8000 FOLDER
set -eu
url=$1 folder=$2
json='Content-Type: application/json'
field() { sed -n "s/.*\"$1\":\"\([^\"]*\)\".*/\1/p" | awk 'NR == 1'; }

# A picture. curl tries again by itself where the server is full or not ready, and the key keeps that from making two.
curl -sSf --retry 5 -H "$json" -H 'Accept: image/png' -H "Idempotency-Key: example-$$" \
  -d '{"class_label": "sneaker", "scale": 3, "steps": 10}' "$url/generate" -o "$folder/sneaker.png"

# The same as WebP, made from what the PNG says of itself.
printf '{"from_image": "%s"}' "$(base64 < "$folder/sneaker.png" | tr -d '\n')" |
  curl -sSf -H "$json" -H 'Accept: image/webp' --data @- "$url/generate" -o "$folder/sneaker.webp"

# Progress: a job, and the stream of what happens to it.
job=$(curl -sSf -H "$json" -d '{"class_label": "bag", "steps": 400, "use_cache": false}' "$url/generate" | field id)
curl -sSfN "$url/jobs/$job/events" | sed -n 's/^event: //p'
curl -sSf "$url/jobs/$job/images/0.png" -o "$folder/bag.png"

# Cancelling.
job=$(curl -sSf -H "$json" -d '{"class_label": "coat", "steps": 1000, "num_images": 8}' "$url/generate" | field id)
curl -sSf -X DELETE "$url/jobs/$job" | field status

# Recovering: the answer says what is wrong, by a code for programs and in words for people.
answer=$(curl -sS -H "$json" -d '{"class_label": "sneker"}' "$url/generate")
echo "$answer" | field detail
if [ "$(echo "$answer" | field code)" = unknown_label ]; then
  curl -sSf -H "$json" -H 'Accept: image/jpeg' -d '{"class_label": "sneaker", "steps": 4}' \
    "$url/generate" -o "$folder/recovered.jpeg"
fi

# Many: a request a line, and the pictures as one zip.
batch=$(printf '{"class_label": 1, "steps": 4}\n{"class_label": 2, "steps": 4}\n' |
  curl -sSf -H 'Content-Type: application/x-ndjson' --data-binary @- "$url/batches" | field id)
until [ "$(curl -sSf "$url/batches/$batch" | field status)" = finished ]; do sleep 0.5; done
curl -sSf "$url/batches/$batch/images.zip" -o "$folder/batch.zip"
