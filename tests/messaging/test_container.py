"""The container of a module's services: registering, looking up, views for dependants, the end."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mono_sync import ClosedError, ConfigurationError, ServiceError, ServiceExistsError, ServiceNotFoundError
from mono_sync.adapter import ConnectionConfig
from mono_sync.client import Connection, make_connection
from mono_sync.messaging import ServiceContainer

words = st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=1, max_size=8)
names = st.lists(words, min_size=1, max_size=4).map("-".join)


@pytest.fixture
def connection() -> Connection:
    return make_connection("nats://127.0.0.1:4222", None, ConnectionConfig())  # never opened


@pytest.fixture
def container(connection: Connection) -> ServiceContainer:
    return ServiceContainer("orders", connection)


def test_container_knows_its_module_and_the_connection(container: ServiceContainer, connection: Connection) -> None:
    assert container.module == "orders"
    assert container.connection is connection
    assert not container.read_only


@given(name=names)
def test_every_kebab_case_name_is_accepted(name: str) -> None:
    container = ServiceContainer("orders", make_connection("nats://127.0.0.1:4222", None, None))
    service = object()
    container.register(name, service)
    assert container.get(name) is service


@pytest.mark.parametrize(
    "name", ["", " ", "Price", "price_list", "-price", "price-", "price--list", "price.list", "preis-ä", "a b", "a\n"]
)
def test_a_name_that_is_not_kebab_case_is_refused(container: ServiceContainer, name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"module 'orders'.*kebab-case"):
        container.register(name, object())
    assert len(container) == 0


@pytest.mark.parametrize("name", [None, 1, b"price", ("price",)])
def test_a_name_that_is_no_str_is_refused(container: ServiceContainer, name: Any) -> None:
    with pytest.raises(ConfigurationError, match="kebab-case"):
        container.register(name, object())


def test_none_is_no_service(container: ServiceContainer) -> None:
    with pytest.raises(ConfigurationError, match="'price' is None"):
        container.register("price", None)


def test_any_other_object_is_a_service_even_a_false_one(container: ServiceContainer) -> None:
    container.register("nothing", 0)
    assert container.get("nothing") == 0


def test_a_name_is_registered_once(container: ServiceContainer) -> None:
    container.register("price", "first")
    with pytest.raises(ServiceExistsError) as caught:
        container.register("price", "second")
    assert (caught.value.module, caught.value.service) == ("orders", "price")
    assert container.get("price") == "first"


def test_registering_the_same_object_twice_is_refused_too(container: ServiceContainer) -> None:
    service = object()
    container.register("price", service)
    with pytest.raises(ServiceExistsError):
        container.register("price", service)


def test_an_unknown_service_is_named_with_those_there_are(container: ServiceContainer) -> None:
    container.register("price", 1)
    container.register("stock", 2)
    with pytest.raises(ServiceNotFoundError, match="'orders' offers no service 'prize'; it offers: price, stock") as it:
        container.get("prize")
    assert it.value.known == ("price", "stock")


def test_names_are_in_the_order_of_registration(container: ServiceContainer) -> None:
    for name in ("stock", "price", "tax"):
        container.register(name, name)
    assert container.names == ("stock", "price", "tax")
    assert list(container) == ["stock", "price", "tax"]
    assert len(container) == 3
    assert repr(container) == "<ServiceContainer 'orders': stock, price, tax>"


def test_has_and_in_tell_whether_there_is_a_service(container: ServiceContainer) -> None:
    container.register("price", 1)
    assert container.has("price")
    assert "price" in container
    assert not container.has("stock")
    assert "stock" not in container


def test_a_view_finds_what_is_registered_before_and_after_it_was_made(container: ServiceContainer) -> None:
    container.register("price", 1)
    view = container.view()
    container.register("stock", 2)
    assert (view.get("price"), view.get("stock")) == (1, 2)
    assert (view.module, view.names, view.read_only) == ("orders", ("price", "stock"), True)
    assert view.connection is container.connection


def test_a_view_cannot_register(container: ServiceContainer) -> None:
    with pytest.raises(ServiceError, match="only module 'orders' itself can register service 'price'"):
        container.view().register("price", 1)
    assert "price" not in container


def test_a_closed_container_refuses_to_register_and_to_get(container: ServiceContainer) -> None:
    container.register("price", 1)
    container.close()
    with pytest.raises(ClosedError, match="'orders' are closed"):
        container.get("price")
    with pytest.raises(ClosedError, match="'orders' are closed"):
        container.register("stock", 2)


def test_a_view_cannot_close(container: ServiceContainer) -> None:
    container.register("price", 1)
    with pytest.raises(ServiceError, match="only module 'orders' itself can close"):
        container.view().close()
    assert container.get("price") == 1


def test_closing_a_container_closes_its_views(container: ServiceContainer) -> None:
    container.register("price", 1)
    view = container.view()
    container.close()
    with pytest.raises(ClosedError):
        view.get("price")


def test_of_many_threads_that_register_one_name_exactly_one_succeeds(container: ServiceContainer) -> None:
    barrier = threading.Barrier(8)
    winners: list[int] = []
    losers: list[int] = []

    def register(number: int) -> None:
        for round_ in range(50):
            barrier.wait(10)
            try:
                container.register(f"price-{round_}", number)
            except ServiceExistsError:
                losers.append(round_)
            else:
                winners.append(round_)

    threads = [threading.Thread(target=register, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(winners) == list(range(50))
    assert len(losers) == 350


def test_names_can_be_read_while_other_threads_register(container: ServiceContainer) -> None:
    def register() -> None:
        for number in range(3000):
            container.register(f"service-{number}", number)

    thread = threading.Thread(target=register)
    thread.start()
    seen = [len(container.names)]
    while thread.is_alive():
        seen.append(len(container.names))
    thread.join(20)
    assert seen == sorted(seen)
    assert len(container.names) == 3000
