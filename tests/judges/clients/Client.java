// A client of Java's HttpClient, for tests/judges/clients.py.
//   java Client.java URL AUTHORITY REQUESTS AT_ONCE   prints `ok N`, and a line for each request that failed

import java.io.InputStream;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.KeyStore;
import java.security.cert.CertificateFactory;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import javax.net.ssl.SSLContext;
import javax.net.ssl.TrustManagerFactory;

public class Client {
    static final String BODY = "0123456789abcdef".repeat(64);

    public static void main(String[] words) throws Exception {
        KeyStore store = KeyStore.getInstance(KeyStore.getDefaultType());
        store.load(null, null);
        try (InputStream pem = Files.newInputStream(Path.of(words[1]))) {
            store.setCertificateEntry("judges", CertificateFactory.getInstance("X.509").generateCertificate(pem));
        }
        TrustManagerFactory trust = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
        trust.init(store);
        SSLContext tls = SSLContext.getInstance("TLS");
        tls.init(null, trust.getTrustManagers(), null);
        HttpClient client = HttpClient.newBuilder().version(HttpClient.Version.HTTP_2).sslContext(tls).build();
        URI url = URI.create(words[0]);
        int requests = Integer.parseInt(words[2]);
        int atOnce = Integer.parseInt(words[3]);
        AtomicInteger next = new AtomicInteger();
        AtomicInteger ok = new AtomicInteger();
        // The first alone, so that the others find its connection.
        once(client, url, next.incrementAndGet(), ok);
        var pool = Executors.newFixedThreadPool(atOnce);
        for (int asker = 0; asker < atOnce; asker++) {
            pool.submit(() -> {
                for (int n = next.incrementAndGet(); n <= requests; n = next.incrementAndGet()) {
                    once(client, url, n, ok);
                }
            });
        }
        pool.shutdown();
        pool.awaitTermination(1, TimeUnit.HOURS);
        System.out.println("ok " + ok);
    }

    static void once(HttpClient client, URI url, int n, AtomicInteger ok) {
        try {
            HttpRequest.Builder request = HttpRequest.newBuilder(url);
            if (n % 2 == 0) {
                request.POST(HttpRequest.BodyPublishers.ofString(BODY));
            }
            HttpResponse<String> answer = client.send(request.build(), HttpResponse.BodyHandlers.ofString());
            if (answer.version() == HttpClient.Version.HTTP_2 && answer.statusCode() == 200 && answer.body().equals(BODY)) {
                ok.incrementAndGet();
            } else {
                System.out.println(answer + ", " + answer.body().length() + " bytes");
            }
        } catch (Exception error) {
            System.out.println(error);
        }
    }
}
