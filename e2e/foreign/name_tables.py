"""Name tables as Istio's agents ask for them: one resource of a message that is not Envoy's."""

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from ads_server import LDS
from control import Client, Mesh, host, istio, names, node, service
from harness import check, equal, scenario

NDS = "type.googleapis.com/istio.networking.nds.v1.NameTable"


def _message():
    """The class of `NameTable`, by the numbers of its fields that Istio publishes."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="nds.proto", package="istio.networking.nds.v1", syntax="proto3")
    table = file.message_type.add(name="NameTable")
    info = table.nested_type.add(name="NameInfo")
    info.field.add(name="ips", number=1, type=field.TYPE_STRING, label=field.LABEL_REPEATED)
    for number, name in ((2, "registry"), (3, "shortname"), (4, "namespace")):
        info.field.add(name=name, number=number, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    entry = table.nested_type.add(name="TableEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    prefix = ".istio.networking.nds.v1.NameTable."
    entry.field.add(name="value", number=2, type=field.TYPE_MESSAGE, label=field.LABEL_OPTIONAL, type_name=prefix + "NameInfo")
    table.field.add(name="table", number=1, type=field.TYPE_MESSAGE, label=field.LABEL_REPEATED, type_name=prefix + "TableEntry")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("istio.networking.nds.v1.NameTable"))


NameTable = _message()


def table(response):
    """Addresses by host, of the one resource there may be."""
    equal(len(response.resources), 1, "resources")
    resource = response.resources[0]
    body = resource if hasattr(resource, "type_url") else resource.resource
    equal(body.type_url, NDS, "type")
    return NameTable.FromString(body.value).table


def entry(name, hosts, **spec):
    return istio("ServiceEntry", name, {"hosts": hosts, "resolution": "STATIC", "ports": [{"number": 9000, "name": "tls", "protocol": "TLS"}],
                                        "endpoints": [{"address": "10.9.9.9"}], **spec})


def client(world, mesh, **metadata):
    return world.keep(Client(mesh, world.variant, node("web-1", **metadata)))


@scenario("delta", "sotw")
def names_of_services(world):
    """Services, their short names, what comes and goes; nothing is sent where nothing changed."""
    mesh = Mesh(world)
    mesh.put("a", service("a"))
    mesh.put("ext", entry("ext", ["ext.test"], addresses=["10.3.0.1"]))
    mesh.start()
    c = client(world, mesh)
    first = table(c.get(NDS))
    a = first[host("a")]
    equal((list(a.ips), a.registry, a.shortname, a.namespace), ([service("a")["spec"]["clusterIP"]], "Kubernetes", "a", "shop"), "a service")
    ext = first["ext.test"]
    equal((list(ext.ips), ext.registry, ext.shortname, ext.namespace), (["10.3.0.1"], "External", "", ""), "an entry")
    mesh.put("b", service("b"))
    response = c.next(NDS)
    check(host("b") in table(response), "the new service is told")
    c.answer(response)
    mesh.put("rule", istio("DestinationRule", "b", {"host": host("b"), "trafficPolicy": {"loadBalancer": {"simple": "RANDOM"}}}))
    c.silent("a rule names nothing")
    mesh.drop("ext")
    check("ext.test" not in table(c.next(NDS)), "the entry is gone")


@scenario("delta", "sotw")
def allocated_addresses(world):
    """Hosts without an address have one where DNS is answered, the same for all proxies, and after a restart."""
    mesh = Mesh(world)
    mesh.put("bare", entry("bare", ["one.test", "two.test"]))
    mesh.start()
    plain = client(world, mesh)
    check("one.test" not in table(plain.get(NDS)), "nobody asked for made-up addresses")
    seen = []
    for number in range(2):
        c = client(world, mesh, DNS_CAPTURE="true")
        found = table(c.get(NDS))
        addresses = [list(found[name].ips) for name in ("one.test", "two.test")]
        check(all(len(ips) == 1 and ips[0].startswith("240.240.") for ips in addresses), f"addresses {addresses}")
        check(addresses[0] != addresses[1], "each host has its own")
        listeners = [name for name in names(c.get(LDS)) if name.startswith("240.240.")]
        equal(sorted(listeners), sorted(f"{ips[0]}_9000" for ips in addresses), "listeners")
        seen.append(addresses)
        if not number:
            mesh.process.may_end = True
            mesh.process.close()
            mesh.start()
    equal(seen[0], seen[1], "addresses after a restart")
    shown = [o.get("status") for o in mesh.page("/debug/configz")["objects"] if o["kind"] == "ServiceEntry"]
    values = [a["value"] for status in shown for a in status["addresses"] if a["host"] == "one.test"]
    check(seen[0][0][0] in values and len(values) == 2, f"status {shown}")
