// A server and a client of the JDK, for tests/proxy/real.rs. The client prefers HTTP/2, so the
// first request of each of its connections offers an upgrade to h2c.
//   java Peer.java serve             prints its port
//   java Peer.java ask HOST PORT     prints `asked N`

import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.Executors;

public class Peer {
    static final byte[] BODY = new byte[102400];

    public static void main(String[] arguments) throws Exception {
        for (int at = 0; at < BODY.length; at++) BODY[at] = (byte) at;
        if (arguments[0].equals("serve")) serve();
        else ask("http://" + arguments[1] + ":" + arguments[2]);
    }

    static void serve() throws Exception {
        HttpServer server = HttpServer.create(new InetSocketAddress("127.0.0.1", 0), 0);
        server.createContext("/", exchange -> {
            byte[] body = BODY;
            if (exchange.getRequestMethod().equals("POST")) body = exchange.getRequestBody().readAllBytes();
            boolean head = exchange.getRequestMethod().equals("HEAD");
            boolean chunked = exchange.getRequestURI().getPath().equals("/chunked");
            if (head) exchange.getResponseHeaders().set("Content-Length", "" + body.length);
            exchange.sendResponseHeaders(200, head ? -1 : chunked ? 0 : body.length);
            if (!head) exchange.getResponseBody().write(body);
            exchange.close();
        });
        server.setExecutor(Executors.newCachedThreadPool());
        server.start();
        System.out.println(server.getAddress().getPort());
    }

    static void ask(String base) throws Exception {
        HttpClient client = HttpClient.newHttpClient();
        int asked = 0;
        for (String path : List.of("/counted", "/chunked", "/until-close", "/counted")) {
            check(client, HttpRequest.newBuilder(URI.create(base + path)).build(), BODY);
            asked++;
        }
        HttpRequest.Builder echo = HttpRequest.newBuilder(URI.create(base + "/echo"));
        check(client, echo.POST(BodyPublishers.ofByteArray(BODY)).build(), BODY);
        check(client, echo.POST(BodyPublishers.ofByteArrays(List.of(BODY))).build(), BODY);
        check(client, echo.expectContinue(true).POST(BodyPublishers.ofByteArray(BODY)).build(), BODY);
        System.out.println("asked " + (asked + 3));
    }

    static void check(HttpClient client, HttpRequest request, byte[] body) throws Exception {
        var answer = client.send(request, BodyHandlers.ofByteArray());
        if (answer.statusCode() != 200 || !Arrays.equals(answer.body(), body))
            throw new Exception(request + ": " + answer.statusCode() + ", " + answer.body().length + " bytes");
    }
}
