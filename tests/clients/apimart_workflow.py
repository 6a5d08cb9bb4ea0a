"""The image-to-image workflow of an APIMart client: upload, create, poll, then fetch the result.

    python3 apimart_workflow.py BASE_URL KEY [IMAGE]

Such clients know nothing but this: the upload answers with `url`; the creation, which asks for no
asynchronous mode, answers with `id`; polling that id ends at `completed` with `url` or at `failed`.
Prints one JSON object with what it got.
"""

import json
import sys
import time

import requests

import image_files

MODEL = "gemini-3-pro-image-preview"


class Workflow:
    def __init__(self, base_url, key):
        self.base_url = base_url
        self.headers = {"Authorization": f"Bearer {key}"}

    def upload(self, file):
        answer = requests.post(f"{self.base_url}/v1/uploads/images", headers=self.headers, files={"file": file})
        return answer.json()["url"]

    def create(self, reference_url, prompt):
        answer = requests.post(
            f"{self.base_url}/v1/images/generations",
            headers={**self.headers, "Content-Type": "application/json"},
            json={"model": MODEL, "prompt": prompt, "image_urls": [{"url": reference_url}], "size": "16:9"},
        )
        return answer.json()["id"]

    def wait(self, task_id):
        while True:
            answer = requests.get(f"{self.base_url}/v1/images/generations/{task_id}", headers=self.headers)
            task = answer.json()
            if task["status"] == "completed":
                return task["url"]
            if task["status"] == "failed":
                raise RuntimeError(f"generation failed: {task.get('fail_reason')}")
            time.sleep(2)


def fetch(url):
    """Follows the link without the key, as a browser would."""
    answer = requests.get(url)
    answer.raise_for_status()
    return answer


def main(base_url, key, image=None):
    workflow = Workflow(base_url, key)
    if image:
        with open(image, "rb") as file:
            upload_url = workflow.upload(file)
    else:
        upload_url = workflow.upload(("reference.png", image_files.make(), "image/png"))
    task_id = workflow.create(upload_url, "Turn this photo into a watercolour")
    result_url = workflow.wait(task_id)
    result = fetch(result_url)
    facts = {
        "upload_url": upload_url,
        "task_id": task_id,
        "result_url": result_url,
        "content_type": result.headers["Content-Type"],
        "redirects": [hop.status_code for hop in result.history],
        "image": image_files.describe(result.content),
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main(*sys.argv[1:])
