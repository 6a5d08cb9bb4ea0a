#!/usr/bin/env bash
# The requests of the image APIs' documentation, as the curl lines people paste.
#
#     curl_lines.sh BASE_URL KEY [PYTHON]
#
# Prints a line of JSON for each: its name, the status, and what came; for images also what the link holds.
# Ends at the first that does not answer as it should.
set -euo pipefail

base=$1
key=$2
python=${3:-${IT_PYTHON:-python3}}
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
photo=$work/photo.png
"$python" "$here/image_files.py" --write "$photo"

# Sets `status`, and leaves the body in a file.
call() {
  status=$(curl --silent --show-error --max-time 120 --output "$work/body" --write-out '%{http_code}' "$@")
}

# A member of the last body: field data 0 url
field() {
  "$python" -c 'import functools, json, sys
value = json.load(open(sys.argv[1]))
print(functools.reduce(lambda value, key: value[int(key) if key.isdigit() else key], sys.argv[2:], value))' \
    "$work/body" "$@"
}

expect() {
  if [[ $status != "$2" ]]; then
    echo "$1: status $status instead of $2: $(cat "$work/body")" >&2
    exit 1
  fi
}

# report NAME [LINK]: the last body, and what the link to an image in it leads to.
report() {
  local image=null
  if (($# > 1)); then
    curl --silent --show-error --fail --location --output "$work/image" "$2"
    image=$("$python" "$here/image_files.py" "$work/image")
  fi
  "$python" -c 'import json, sys
print(json.dumps({"name": sys.argv[1], "status": int(sys.argv[2]), "body": json.load(open(sys.argv[3])),
                  "image": json.loads(sys.argv[4])}))' "$1" "$status" "$work/body" "$image"
}

# ── upload ──
call --request POST \
  --url "$base/v1/uploads/images" \
  --header "Authorization: Bearer $key" \
  --form "file=@$photo"
expect upload 200
photo_url=$(field url)
report upload "$photo_url"

# ── text to image, nothing but what is required ──
call -X POST "$base/v1/images/generations" \
  -H "Authorization: Bearer $key" \
  -H "Content-Type: application/json" \
  -d '{
    "model": "gpt-image-2",
    "prompt": "a lighthouse in the fog, ink on paper"
  }'
expect minimal 200
report minimal "$(field data 0 url)"

# ── ratio, resolution and quality ──
call -X POST "$base/v1/images/generations" \
  -H "Authorization: Bearer $key" \
  -H "Content-Type: application/json" \
  -d '{
    "model": "gpt-image-2",
    "prompt": "a lighthouse in the fog, cinematic",
    "size": "16:9",
    "resolution": "2k",
    "quality": "medium"
  }'
expect ratio_2k 200
report ratio_2k "$(field data 0 url)"

# ── image to image, by URL ──
call -X POST "$base/v1/images/edits" \
  -H "Authorization: Bearer $key" \
  -H "Content-Type: application/json" \
  -d '{
    "model": "gpt-image-2",
    "prompt": "the same place in winter",
    "size": "1536x1024",
    "image_urls": ["'"$photo_url"'"]
  }'
expect edit_by_url 200
report edit_by_url "$(field data 0 url)"

# ── image to image, a local file ──
call -X POST "$base/v1/images/edits" \
  -H "Authorization: Bearer $key" \
  -F "model=gpt-image-2" \
  -F "prompt=the same place in winter" \
  -F "size=1536x1024" \
  -F "image[]=@$photo"
expect edit_by_file 200
report edit_by_file "$(field data 0 url)"

# ── several references, a URL and base64 mixed ──
photo_base64=$(base64 <"$photo" | tr -d '\n')
call -X POST "$base/v1/images/edits" \
  -H "Authorization: Bearer $key" \
  -H "Content-Type: application/json" \
  -d '{
    "model": "gpt-image-2",
    "prompt": "a poster of these two",
    "size": "4:3",
    "resolution": "2k",
    "image_urls": [
      "'"$photo_url"'",
      "data:image/png;base64,'"$photo_base64"'"
    ]
  }'
expect edit_mixed 200
report edit_mixed "$(field data 0 url)"

# ── submit, then poll ──
call -X POST "$base/v1/images/edits?async=1" \
  -H "Authorization: Bearer $key" \
  -H "Content-Type: application/json" \
  -d '{
    "model": "gpt-image-2",
    "prompt": "the same place in winter",
    "image_urls": ["'"$photo_url"'"]
  }'
expect async_submit 202
report async_submit
task_id=$(field task_id)
for ((tries = 0; tries < 240; tries++)); do
  call "$base/v1/images/tasks/$task_id" \
    -H "Authorization: Bearer $key"
  expect async_poll 200
  [[ $(field status) == pending ]] || break
  sleep 0.25
done
if [[ $(field status) != completed ]]; then
  echo "async_poll: the task did not complete: $(cat "$work/body")" >&2
  exit 1
fi
report async_poll "$(field result_url)"
