# amplify with CPU inference. Build: docker build -t amplify .   Use: docker run --rm -v $PWD:/work amplify run TASK …
FROM python:3.12-slim
RUN useradd --create-home amplify && mkdir /work && chown amplify /work
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY amplify amplify
COPY prompts prompts
COPY steering steering
COPY tasks tasks
COPY eval eval
RUN pip install --no-cache-dir torch --index-url https://download.pytorch.org/whl/cpu \
    && pip install --no-cache-dir '.[local]'
USER amplify
ENV AMPLIFY_HOME=/home/amplify/.cache/amplify
WORKDIR /work
ENTRYPOINT ["amplify"]
