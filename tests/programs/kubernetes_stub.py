"""An API server for kubectl, as a user of one namespace sees it: its Jobs, Services and pods.

    with Cluster(namespace="team") as cluster:
        cluster.env   # KUBECONFIG for kubectl

It answers discovery, create, list by label, delete and logs; asked for all namespaces it forbids, as RBAC does. It is
no Kubernetes: nothing is scheduled, and of an object only its JSON and kind are looked at. jobsets: the CRD is there.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlparse

VERBS = ["create", "delete", "deletecollection", "get", "list"]
GROUPS = {
    "v1": {"services": "Service", "pods": "Pod"},
    "batch/v1": {"jobs": "Job"},
    "jobset.x-k8s.io/v1alpha2": {"jobsets": "JobSet"},
}
OBJECT = re.compile(
    r"/apis?/(?P<group>v1|[^/]+/v1[^/]*)/namespaces/(?P<namespace>[^/]+)/(?P<kind>\w+)"
    r"(?:/(?P<name>[^/]+))?(?P<log>/log)?"
)
EVERYWHERE = re.compile(r"/apis?/(?P<group>v1|[^/]+/v1[^/]*)/(?P<kind>\w+)")


class Cluster:
    def __init__(self, namespace: str, jobsets: bool = False) -> None:
        self.namespace = namespace
        self.groups = {name: kinds for name, kinds in GROUPS.items() if jobsets or "jobset" not in name}
        self.objects: dict[tuple[str, str], dict] = {}  # (kind, name) -> object
        self.asked: list[str] = []  # method and path
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"cluster": self}))

    def __enter__(self) -> Cluster:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.folder = tempfile.TemporaryDirectory()
        url = f"http://127.0.0.1:{self.server.server_port}"
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": url}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u", "namespace": "elsewhere"}}],
        }
        path = os.path.join(self.folder.name, "config")
        with open(path, "w") as file:
            json.dump(config, file)
        self.env = {"KUBECONFIG": path, "HOME": self.folder.name}
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.folder.cleanup()

    def of(self, kind: str) -> list[str]:
        return sorted(name for its, name in self.objects if its == kind)


class Handler(BaseHTTPRequestHandler):
    cluster: Cluster
    protocol_version = "HTTP/1.1"

    def log_message(self, *words: object) -> None:
        pass

    def say(self, content: object, code: int = 200) -> None:
        plain = isinstance(content, str)
        body = content.encode() if plain else json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "text/plain" if plain else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def fail(self, code: int, reason: str, message: str) -> None:
        self.say(
            {
                "kind": "Status",
                "apiVersion": "v1",
                "status": "Failure",
                "reason": reason,
                "message": message,
                "code": code,
            },
            code,
        )

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        groups = self.cluster.groups
        if path == "/api":
            self.say({"kind": "APIVersions", "versions": ["v1"]})
        elif path == "/apis":
            self.say(
                {
                    "kind": "APIGroupList",
                    "apiVersion": "v1",
                    "groups": [
                        {
                            "name": name.partition("/")[0],
                            "versions": [version := {"groupVersion": name, "version": name.partition("/")[2]}],
                            "preferredVersion": version,
                        }
                        for name in groups
                        if "/" in name
                    ],
                }
            )
        elif (name := re.sub("^/apis?/", "", path)) in groups:
            self.say(
                {
                    "kind": "APIResourceList",
                    "apiVersion": "v1",
                    "groupVersion": name,
                    "resources": [
                        {"name": plural, "singularName": kind.lower(), "namespaced": True, "kind": kind, "verbs": VERBS}
                        for plural, kind in groups[name].items()
                    ],
                }
            )
        else:
            self.do_object()

    def do_object(self) -> None:
        cluster, url = self.cluster, urlparse(self.path)
        cluster.asked.append(f"{self.command} {url.path}")
        found = OBJECT.fullmatch(url.path)
        if found is None and (found := EVERYWHERE.fullmatch(url.path)):
            where = "at the cluster scope"
        elif found is None or found["kind"] not in cluster.groups.get(found["group"], {}):
            return self.fail(404, "NotFound", "the server could not find the requested resource")
        else:
            where = "" if found["namespace"] == cluster.namespace else f'in the namespace "{found["namespace"]}"'
        if where:
            group = found["group"].rpartition("/")[0]
            return self.fail(
                403,
                "Forbidden",
                f'{found["kind"]}.{group} is forbidden: User "u" cannot list resource '
                f'"{found["kind"]}" in API group "{group}" {where}',
            )
        if found["log"]:
            return self.say(f"{found['name']} says hello\n")
        kind = cluster.groups[found["group"]][found["kind"]]
        do = {"GET": self.list, "POST": self.create, "DELETE": self.delete}[self.command]
        do(kind, found["name"], found["group"])

    do_POST = do_DELETE = do_object

    def list(self, kind: str, name: str | None, group: str) -> None:
        if name:
            one = self.cluster.objects.get((kind, name))
            return self.say(one) if one else self.fail(404, "NotFound", f'{kind} "{name}" not found')
        selector = parse_qs(urlparse(self.path).query).get("labelSelector", [""])[0]
        wanted = dict(pair.split("=") for pair in selector.split(",") if pair)
        items = [
            each
            for (its, _), each in self.cluster.objects.items()
            if its == kind and wanted.items() <= each["metadata"].get("labels", {}).items()
        ]
        self.say({"kind": f"{kind}List", "apiVersion": group, "metadata": {}, "items": items})

    def create(self, kind: str, name: str | None, group: str) -> None:
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert content["kind"] == kind and content["metadata"]["namespace"] == self.cluster.namespace
        self.cluster.objects[kind, content["metadata"]["name"]] = content
        self.say(content, 201)

    def delete(self, kind: str, name: str, group: str) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.cluster.objects.pop((kind, name), None) is None:
            return self.fail(404, "NotFound", f'{kind} "{name}" not found')
        self.say({"kind": "Status", "apiVersion": "v1", "status": "Success"})
