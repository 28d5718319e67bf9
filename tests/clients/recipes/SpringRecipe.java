// Runs the block for Spring of docs/clients.md as Spring Boot reads it: java SpringRecipe.java SUBJECT BLOCK
// Without arguments it prints the version of Spring.

import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Properties;
import org.springframework.core.SpringVersion;
import org.springframework.mail.SimpleMailMessage;
import org.springframework.mail.javamail.JavaMailSenderImpl;

class SpringRecipe {
    public static void main(String[] arguments) throws Exception {
        if (arguments.length == 0) {
            System.out.println("Spring " + SpringVersion.getVersion());
            return;
        }
        Properties given = new Properties();
        try (var reader = Files.newBufferedReader(Path.of(arguments[1]))) {
            given.load(reader);
        }
        JavaMailSenderImpl sender = new JavaMailSenderImpl();
        sender.setHost(given.getProperty("spring.mail.host"));
        sender.setPort(Integer.parseInt(given.getProperty("spring.mail.port")));
        sender.setUsername(given.getProperty("spring.mail.username"));
        String password = given.getProperty("spring.mail.password");
        sender.setPassword(password.replace("${OPENSEND_API_KEY}", System.getenv("OPENSEND_API_KEY")));
        String prefix = "spring.mail.properties.";
        for (String name : given.stringPropertyNames()) {
            if (name.startsWith(prefix)) {
                sender.getJavaMailProperties().setProperty(name.substring(prefix.length()), given.getProperty(name));
            }
        }
        SimpleMailMessage message = new SimpleMailMessage();
        message.setFrom("you@example.com");
        message.setTo("to@x.example");
        message.setSubject(arguments[0]);
        message.setText("Hello");
        sender.send(message);
    }
}
