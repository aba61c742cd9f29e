"""moto's server with conditional puts one after another: its own look first and write then, so that on a busy machine two of one key may
both succeed, which no store that can hold a lake does. Arguments: those of moto's server."""
import threading

from moto import server

guard = threading.Lock()
run_simple = server.run_simple


def guarded(app):
    def call(environ, start_response):
        if environ["REQUEST_METHOD"] == "PUT" and "HTTP_IF_NONE_MATCH" in environ:
            with guard:
                return list(app(environ, start_response))
        return app(environ, start_response)

    return call


server.run_simple = lambda host, port, app, **options: run_simple(host, port, guarded(app), **options)
server.main()
