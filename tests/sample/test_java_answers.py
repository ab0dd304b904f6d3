"""Compiles every Java answer in the embedded sample for Java 17, and runs a check of each in one virtual machine."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from tests.conftest import skip
from tests.sample.answers import code, ids

# Statements for each answer, which run in the answer's own package with Java's assertions switched on.
CHECKS = {
    "java-value-record": """
        assert new Fraction(2, -4).equals(new Fraction(-1, 2));
        assert new Fraction(0, -7).equals(new Fraction(0, 1));
        assert new Fraction(1, 6).plus(new Fraction(1, 3)).equals(new Fraction(1, 2));
        assert new Fraction(1, -2).bottom() == 2;
        throwing(IllegalArgumentException.class, () -> new Fraction(1, 0));
    """,
    "java-value-record-date-range": """
        var may = new Stay(LocalDate.parse("2024-05-30"), LocalDate.parse("2024-06-02"));
        assert may.nights() == 3;
        assert !may.collidesWith(new Stay(LocalDate.parse("2024-06-02"), LocalDate.parse("2024-06-03")));
        assert !may.collidesWith(new Stay(LocalDate.parse("2024-05-29"), LocalDate.parse("2024-05-30")));
        assert may.collidesWith(new Stay(LocalDate.parse("2024-06-01"), LocalDate.parse("2024-06-09")));
        assert may.collidesWith(new Stay(LocalDate.parse("2024-05-31"), LocalDate.parse("2024-06-01")));
        assert may.collidesWith(new Stay(LocalDate.parse("2024-05-01"), LocalDate.parse("2024-06-30")));
        throwing(IllegalArgumentException.class, () -> new Stay(may.departure(), may.departure()));
    """,
    "java-value-record-list-copy": """
        List<String> songs = new ArrayList<>(List.of("one"));
        var first = new Playlist("road", songs);
        songs.add("intruder");
        assert first.songs().equals(List.of("one"));
        var second = first.with("two");
        assert second.equals(new Playlist("road", List.of("one", "two"))) && first.songs().size() == 1;
        throwing(UnsupportedOperationException.class, () -> second.songs().add("three"));
        throwing(NullPointerException.class, () -> new Playlist("road", Arrays.asList("one", null)));
    """,
    "java-value-record-map-key": """
        Locale before = Locale.getDefault();
        try {
            Locale.setDefault(new Locale("tr", "TR"));
            Map<HeaderName, String> headers = new HashMap<>();
            headers.put(new HeaderName("CONTENT-ID "), "7");
            assert "7".equals(headers.get(HeaderName.of("content-id")));
            assert headers.get(HeaderName.of("Content-Type")) == null;
        } finally {
            Locale.setDefault(before);
        }
        throwing(IllegalArgumentException.class, () -> HeaderName.of("  "));
    """,
    "java-sealed-types": """
        assert new Payment.Card(10_000).fee() == 150;
        assert new Payment.Card(1_000).fee() == 25;
        assert new Payment.Transfer(10_000).fee() == 20;
        assert new Payment.Voucher("SPRING").fee() == 0;
        assert Payment.class.isSealed() && Payment.class.getPermittedSubclasses().length == 3;
    """,
    "java-sealed-types-result": """
        Result<Integer> good = new Result.Ok<>(20);
        assert good.map(number -> "n" + (number + 1)).equals(new Result.Ok<>("n21"));
        Result<Integer> bad = new Result.Err<>("not a number");
        assert bad.map(number -> number + 1).equals(new Result.Err<>("not a number"));
        assert Result.class.isSealed();
    """,
    "java-sealed-types-expression-tree": """
        Expr sum = new Expr.Add(new Expr.Num(1), new Expr.Num(2));
        assert Expr.eval(new Expr.Mul(sum, new Expr.Add(sum, new Expr.Num(0.5)))) == 10.5;
        assert Expr.eval(new Expr.Num(-4)) == -4;
    """,
    "java-stream-collectors": """
        var averages = Ratings.average(List.of(
            new Review("pencil", 5), new Review("ink", 2), new Review("notebook", 3), new Review("pencil", 4)));
        assert averages.equals(Map.of("ink", 2.0, "notebook", 3.0, "pencil", 4.5));
        assert List.copyOf(averages.keySet()).equals(List.of("ink", "notebook", "pencil"));
        assert Ratings.average(List.of()).isEmpty();
    """,
    "java-stream-collectors-anagrams": """
        var groups = Anagrams.find(List.of("Listen", "stone", "silent", "notes", "apple", "onset", "pale"));
        assert Set.copyOf(groups).equals(Set.of(List.of("Listen", "silent"), List.of("stone", "notes", "onset")));
    """,
    "java-stream-collectors-one-pass-range": """
        assert Range.of(Stream.of(3.5, -2.0, 8.0)).equals(Optional.of(new Range(-2.0, 8.0)));
        assert Range.of(Stream.of(1.0)).equals(Optional.of(new Range(1.0, 1.0)));
        assert Range.of(Stream.empty()).isEmpty();
    """,
    "java-stream-collectors-tag-index": """
        var titles = TagIndex.build(List.of(
            new Article("Zebras", List.of("nature", "africa")), new Article("Ants", List.of("nature", "garden")),
            new Article("Empty", List.of())));
        assert titles.equals(Map.of(
            "africa", List.of("Zebras"), "garden", List.of("Ants"), "nature", List.of("Zebras", "Ants")));
        assert List.copyOf(titles.keySet()).equals(List.of("africa", "garden", "nature"));
    """,
    "java-completable-future": """
        var pool = Executors.newFixedThreadPool(3);
        var together = new CyclicBarrier(3);
        List<Supplier<Quote>> shops = new ArrayList<>();
        for (long cents : new long[] {300, 100, 200}) {
            shops.add(() -> {
                try {
                    together.await(5, TimeUnit.SECONDS);
                } catch (Exception late) {
                    throw new IllegalStateException("the calls do not run at the same time", late);
                }
                return new Quote("shop" + cents, cents);
            });
        }
        try {
            assert Quotes.cheapest(shops, pool).equals(new Quote("shop100", 100));
        } finally {
            pool.shutdownNow();
        }
    """,
    "java-completable-future-fallback": """
        List<String> defaults = List.of("top ten");
        var never = new CompletableFuture<List<String>>();
        assert Recommendations.orDefaults(never, Duration.ofMillis(20), defaults).get(5, TimeUnit.SECONDS) == defaults;
        assert !never.isDone();
        var broken = CompletableFuture.<List<String>>failedFuture(new IllegalStateException());
        assert Recommendations.orDefaults(broken, Duration.ofDays(1), defaults).join() == defaults;
        var quick = CompletableFuture.completedFuture(List.of("yours"));
        assert Recommendations.orDefaults(quick, Duration.ofDays(1), defaults).join().equals(List.of("yours"));
    """,
    "java-completable-future-combine": """
        var name = new CompletableFuture<String>();
        var unread = new CompletableFuture<Integer>();
        var greeting = Profile.greeting(() -> name, () -> unread);
        unread.complete(3);
        assert !greeting.isDone();
        name.complete("Ann");
        assert greeting.join().equals("Hello Ann, 3 unread");
    """,
    "java-thread-pool": """
        List<Callable<Integer>> tasks = List.of(
            () -> { Thread.sleep(30); return 1; }, () -> 2, () -> { Thread.sleep(10); return 3; });
        assert Batch.runAll(tasks, 3).equals(List.of(1, 2, 3));
        Set<Thread> workers = ConcurrentHashMap.newKeySet();
        Callable<Integer> broken = () -> { workers.add(Thread.currentThread()); throw new IllegalStateException(); };
        throwing(ExecutionException.class, () -> Batch.runAll(List.of(broken), 1));
        for (Thread worker : workers) {
            worker.join(5000);
            assert !worker.isAlive() : "the pool is still there";
        }
        assert workers.size() == 1;
    """,
    "java-thread-pool-background-writer": """
        List<String> written = new ArrayList<>();
        List<String> expected = new ArrayList<>();
        Set<Thread> writers = ConcurrentHashMap.newKeySet();
        var gate = new CountDownLatch(1);
        try (var log = new BackgroundLog(line -> {
            try {
                gate.await();
            } catch (InterruptedException stop) {
                throw new IllegalStateException(stop);
            }
            writers.add(Thread.currentThread());
            written.add(line);
        })) {
            for (int i = 0; i < 50; i++) {
                log.log("line " + i);
                expected.add("line " + i);
            }
            gate.countDown();
        }
        assert written.equals(expected);
        assert writers.size() == 1 && !writers.contains(Thread.currentThread());
    """,
    "java-thread-pool-token-bucket": """
        long second = 1_000_000_000L;
        var bucket = new TokenBucket(2, 5, 0);
        assert bucket.tryAcquire(0) && bucket.tryAcquire(0) && !bucket.tryAcquire(0);
        assert !bucket.tryAcquire(second / 10);
        assert bucket.tryAcquire(second / 5) && !bucket.tryAcquire(second / 5);
        assert bucket.tryAcquire(9 * second) && bucket.tryAcquire(9 * second) && !bucket.tryAcquire(9 * second);
    """,
    "java-generics": """
        var registry = new Registry();
        registry.put(String.class, "text");
        registry.put(Integer.class, 7);
        String text = registry.get(String.class).orElseThrow();
        int number = registry.get(Integer.class).orElseThrow();
        assert text.equals("text") && number == 7;
        assert registry.get(Long.class).isEmpty();
    """,
    "java-generics-zip": """
        List<Integer> numbers = List.of(1, 2, 3);
        List<Double> weights = List.of(0.5, 2.0);
        BiFunction<Number, Number, Double> multiply = (a, b) -> a.doubleValue() * b.doubleValue();
        assert Lists.zip(numbers, weights, multiply).equals(List.of(0.5, 4.0));
        assert Lists.zip(weights, numbers, multiply).equals(List.of(0.5, 4.0));
        assert Lists.zip(List.<Integer>of(), weights, multiply).isEmpty();
    """,
    "java-generics-rules": """
        Predicate<Object> present = Objects::nonNull;
        List<Rule<String>> rules = List.of(
            new Rule<>("missing", present),
            new Rule<>("too short", name -> name.length() > 2),
            new Rule<>("no digits", name -> name.matches("\\\\D*")));
        assert Rule.violations("x1", rules).equals(List.of("too short", "no digits"));
        assert Rule.violations("Anna", rules).isEmpty();
    """,
    "java-enums": """
        assert OrderStatus.NEW.to(OrderStatus.PAID).to(OrderStatus.SHIPPED) == OrderStatus.SHIPPED;
        assert OrderStatus.NEW.to(OrderStatus.CANCELLED) == OrderStatus.CANCELLED;
        assert OrderStatus.PAID.to(OrderStatus.CANCELLED) == OrderStatus.CANCELLED;
        throwing(IllegalStateException.class, () -> OrderStatus.NEW.to(OrderStatus.SHIPPED));
        for (OrderStatus any : OrderStatus.values()) {
            throwing(IllegalStateException.class, () -> OrderStatus.SHIPPED.to(any));
            throwing(IllegalStateException.class, () -> OrderStatus.CANCELLED.to(any));
            throwing(IllegalStateException.class, () -> any.to(any));
        }
    """,
    "java-enums-units": """
        assert Weight.KILOGRAM.convert(1.5, Weight.GRAM) == 1500;
        assert Weight.GRAM.convert(250, Weight.KILOGRAM) == 0.25;
        assert Math.abs(Weight.POUND.convert(1, Weight.OUNCE) - 16) < 1e-9;
        assert Weight.OUNCE.convert(3, Weight.OUNCE) == 3;
    """,
    "java-enums-permissions": """
        assert Right.pack(EnumSet.of(Right.READ, Right.DELETE)) == 5;
        assert Right.pack(Set.of()) == 0;
        assert Right.unpack(6).equals(EnumSet.of(Right.WRITE, Right.DELETE));
        for (int mask = 0; mask < 8; mask++) {
            assert Right.pack(Right.unpack(mask)) == mask;
        }
    """,
}

CHECK_CLASS = """
package %(package)s;
import java.time.*;
import java.util.*;
import java.util.concurrent.*;
import java.util.function.*;
import java.util.stream.*;

public class Check implements Callable<Void> {
    public Void call() throws Exception {
        %(body)s
        return null;
    }

    private static void throwing(Class<? extends Exception> expected, Callable<?> action) {
        try {
            action.call();
        } catch (Exception thrown) {
            assert expected.isInstance(thrown) : thrown;
            return;
        }
        throw new AssertionError("expected " + expected);
    }
}
"""

RUNNER_CLASS = """
class Runner {
    public static void main(String[] packages) throws Exception {
        for (String name : packages) {
            var type = Class.forName(name + ".Check");
            var check = (java.util.concurrent.Callable<?>) type.getConstructor().newInstance();
            try {
                check.call();
                System.out.println(name + ": passed");
            } catch (Throwable failure) {
                var trace = java.util.Arrays.toString(failure.getStackTrace());
                System.out.println(name + ": " + (failure + " at " + trace).replace('\\n', ' '));
            }
        }
        System.exit(0);
    }
}
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The outcome of each package's check, after one compilation and in one virtual machine."""
    # The javac of a Mac without a JDK is a stub that fails.
    if not shutil.which("javac") or subprocess.run(["javac", "-version"], capture_output=True, check=False).returncode:
        skip("no JDK was found (Debian: apt-get install default-jdk-headless; macOS: brew install openjdk)")
    folder = tmp_path_factory.mktemp("java")
    (folder / "Runner.java").write_text(RUNNER_CLASS)
    for prompt_id, body in CHECKS.items():
        package = package_of(prompt_id)
        (folder / package).mkdir()
        answer = f"package {package};\n{code(prompt_id, 'java')}"
        (folder / package / "Answer.java").write_text(answer, encoding="utf-8")
        (folder / package / "Check.java").write_text(CHECK_CLASS % {"package": package, "body": body})
    quick_start = "-XX:TieredStopAtLevel=1"
    options = [f"-J{quick_start}", "--release", "17", "-encoding", "UTF-8", "-proc:none", "-d", str(folder)]
    run("javac", *options, *map(str, folder.rglob("*.java")))
    output = run("java", quick_start, "-ea", "-cp", str(folder), "Runner", *map(package_of, CHECKS))
    return dict(line.split(": ", 1) for line in output.splitlines())


def test_every_java_answer_has_a_check() -> None:
    assert sorted(CHECKS) == sorted(ids("java"))


@pytest.mark.parametrize("prompt_id", CHECKS)
def test_the_answer_compiles_and_passes_its_check(prompt_id: str, outcomes: dict[str, str]) -> None:
    assert outcomes[package_of(prompt_id)] == "passed"


def package_of(prompt_id: str) -> str:
    """The package of an answer: answers use the same class names."""
    return prompt_id.replace("-", "_")


def run(*command: str) -> str:
    """Run a command that must succeed, and return its output."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
